"""What drives a search: the suggester, the engines, and the pools that evaluate."""
