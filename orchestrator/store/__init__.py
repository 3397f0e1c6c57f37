"""Our tables: studies, stages, trials, attempts, learning curves, and what is still owed to MLflow."""
