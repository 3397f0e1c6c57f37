"""Tasks of a worker other than training: scoring, replaying learning curves, averaging checkpoints."""
