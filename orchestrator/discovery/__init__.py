"""Evolutionary search for new score formulas."""
