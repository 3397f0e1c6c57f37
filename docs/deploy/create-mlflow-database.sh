#!/bin/sh
# Run once by the postgres image, when it creates its data folder: MLflow's tables need a separate database.
set -eu
createdb --username "$POSTGRES_USER" mlflow
