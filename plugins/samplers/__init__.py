"""Samplers choose the next point of a search. Each builds an Optuna `BaseSampler`."""
