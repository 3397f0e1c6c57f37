"""The study file: its fields, how it is read, and the checks that it must pass."""
