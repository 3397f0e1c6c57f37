"""Samplers: which point a search tries next. Each builds an Optuna `BaseSampler`."""
