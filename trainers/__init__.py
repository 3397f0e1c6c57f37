"""Everything that needs torch: models, data, the training loop, checkpoints and the trial worker."""
