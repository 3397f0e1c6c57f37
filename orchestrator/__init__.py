"""The study: its file, stages, engines, store, tracking and command line."""
