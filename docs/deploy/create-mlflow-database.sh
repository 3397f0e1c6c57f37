#!/bin/sh
# Run once by the postgres image, when it creates its data folder: MLflow's tables, and those of its users, need separate
# databases.
set -eu
createdb --username "$POSTGRES_USER" mlflow
createdb --username "$POSTGRES_USER" mlflow_auth
