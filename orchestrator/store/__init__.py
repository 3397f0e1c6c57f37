"""Our tables: studies, stages, trials, attempts, learning curves, and events that wait for MLflow."""
