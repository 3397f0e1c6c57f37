"""Training: the loop, its steps, packs, checkpoints and evaluation."""
