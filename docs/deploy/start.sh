#!/bin/sh
# Starts one part of a team's installation in the foreground, as systemd and containers expect; see docs/deploy.md.
#
#   docs/deploy/start.sh mlflow [SETTINGS]    the MLflow server
#   docs/deploy/start.sh ray [SETTINGS]       the head of the Ray cluster
#   docs/deploy/start.sh node [SETTINGS]      another machine of the Ray cluster
#   docs/deploy/start.sh serve [SETTINGS]     the service, on a machine of the Ray cluster
#   docs/deploy/start.sh join-and-serve [SETTINGS]   the same on a machine (or in a container) that joins without cores
#
# SETTINGS is a copy of vitsearch.env.example. Variables of the environment take precedence over it.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
mlflow_folder=$here/../../mlflow
. "$mlflow_folder/settings.sh"
part=${1:-}
if [ $# -gt 1 ]; then
    if [ ! -f "$2" ]; then
        echo "there is no settings file $2; copy docs/deploy/vitsearch.env.example and edit it" >&2
        exit 2
    fi
    read_settings "$2"
fi

need() {
    for name; do
        eval "value=\${$name:-}"
        if [ -z "$value" ]; then
            echo "start.sh $part: $name must be set; see docs/deploy/vitsearch.env.example" >&2
            exit 2
        fi
        case $value in *change-me*)
            echo "start.sh $part: $name must hold a secret of your own, but still holds change-me; replace it" >&2
            exit 2
            ;;
        esac
    done
}

# Programs of the environment that has vitsearch; by default those on the path.
program() {
    if [ -n "${VENV:-}" ]; then echo "$VENV/bin/$1"; else echo "$1"; fi
}

join() {
    need RAY_ADDRESS RAY_AUTH_TOKEN
    "$(program ray)" start --address="$RAY_ADDRESS" ${RAY_NODE_IP:+--node-ip-address="$RAY_NODE_IP"} "$@"
}

export RAY_AUTH_MODE="${RAY_AUTH_MODE:-token}" RAY_USAGE_STATS_ENABLED="${RAY_USAGE_STATS_ENABLED:-0}"
case $part in
mlflow)
    need MLFLOW_BACKEND_STORE_URI MLFLOW_ARTIFACTS_DESTINATION
    [ "${MLFLOW_APP_NAME:-}" != basic-auth ] || need MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY
    export PYTHON="${PYTHON:-$(program python)}"
    exec "$mlflow_folder/serve.sh" ${2:+"$2"}
    ;;
ray)
    need RAY_AUTH_TOKEN
    unset RAY_ADDRESS # it names this cluster, which is about to start
    set -- --head --block --port="${RAY_HEAD_PORT:-6379}" --include-dashboard=false
    [ -z "${RAY_NODE_IP:-}" ] || set -- "$@" --node-ip-address="$RAY_NODE_IP"
    [ -z "${RAY_NUM_CPUS:-}" ] || set -- "$@" --num-cpus="$RAY_NUM_CPUS"
    exec "$(program ray)" start "$@"
    ;;
node)
    join --block
    ;;
serve | join-and-serve)
    need VITSEARCH_DATABASE_URL
    [ "$part" = serve ] || join --num-cpus=0 --num-gpus=0
    set -- --host "${SERVE_HOST:-127.0.0.1}" --port "${SERVE_PORT:-8000}"
    [ -z "${SERVE_MLFLOW_URL:-}" ] || set -- "$@" --mlflow "$SERVE_MLFLOW_URL"
    exec "$(program vitsearch)" serve "$@"
    ;;
*)
    echo "start.sh: the first word must be mlflow, ray, node, serve or join-and-serve, but got: '$part'" >&2
    exit 2
    ;;
esac
