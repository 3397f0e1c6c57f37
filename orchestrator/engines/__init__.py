"""Runs searches: the suggester, the engines, and the pools that evaluate trials."""
