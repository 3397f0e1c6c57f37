"""MLflow: the events that it is sent, and their delivery."""
