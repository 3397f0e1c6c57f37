"""Weights of an existing model as the start of a training: reading them, and fitting them to another model."""
