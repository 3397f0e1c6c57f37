"""What a worker does besides training: scoring, replaying curves, averaging checkpoints."""
