"""Makes a table of trainings: topologies times recipes with whole learning curves, as a parquet file with a card.

`python -m benchmarks.tables --help` explains the commands. They need only `search_spaces`, `plugins` and `trainers`, so
that a GPU machine without Ray, MLflow, Optuna and SQLAlchemy can run them.
"""
