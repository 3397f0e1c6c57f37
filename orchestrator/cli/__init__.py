"""The command line: thin commands, tables for people, JSON for programs. Commands import heavy modules lazily."""
