"""The command line: thin commands, tables for people, JSON for programs. Heavy imports happen inside commands."""
