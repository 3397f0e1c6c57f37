"""The commands with their arguments, options and help, by subject. What they do is in `orchestrator.cli`."""
