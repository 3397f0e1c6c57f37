"""Torch: models built from topologies, data, the training loop, checkpoints, and the trial worker."""
