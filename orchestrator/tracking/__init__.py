"""MLflow: what it is sent, and how it gets there."""
