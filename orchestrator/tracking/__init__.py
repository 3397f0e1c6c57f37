"""MLflow: the events for it, and their delivery."""
