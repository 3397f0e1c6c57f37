"""Where checkpoints and models are kept: a folder, or an object store behind a folder of local copies."""
