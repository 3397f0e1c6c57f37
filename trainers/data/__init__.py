"""Images: where they come from, decoding, splits."""
