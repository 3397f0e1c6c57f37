"""Pools that evaluate tasks in this process, and what every pool shares."""
