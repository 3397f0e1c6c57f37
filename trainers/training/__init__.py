"""Training: the loop, its schedule of steps, packs, checkpoints and evaluation."""
