"""Image data: sources, decoding and splits."""
