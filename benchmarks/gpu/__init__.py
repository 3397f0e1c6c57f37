"""Everything that is worth measuring on a GPU, in eight minutes: `python -m benchmarks.gpu --help`."""
