"""What people read of a study: summaries and plots."""
