"""Reports on a study: summaries and plots."""
