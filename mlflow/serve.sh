#!/bin/sh
# Starts a team's MLflow tracking server with the settings of mlflow/server.env; see mlflow/README.md.
#
#   mlflow/serve.sh                 settings from server.env next to this file, if it exists
#   mlflow/serve.sh my.env          settings from another file
#
# Variables in the environment take precedence over the file.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
. "$here/settings.sh"
settings=${1:-"$here/server.env"}
if [ -f "$settings" ]; then
    read_settings "$settings"
elif [ $# -gt 0 ]; then
    echo "there is no settings file $settings; copy mlflow/server.env.example and edit it" >&2
    exit 2
fi

if [ -z "${MLFLOW_BACKEND_STORE_URI:-}" ] || [ -z "${MLFLOW_ARTIFACTS_DESTINATION:-}" ]; then
    echo "MLFLOW_BACKEND_STORE_URI and MLFLOW_ARTIFACTS_DESTINATION must be set; copy mlflow/server.env.example to" \
        "mlflow/server.env and edit it" >&2
    exit 2
fi

# By default, MLflow would put its users into a file in the present folder.
if [ "${MLFLOW_APP_NAME:-}" = basic-auth ] && [ ! -f "${MLFLOW_AUTH_CONFIG_PATH:-}" ]; then
    echo "MLFLOW_AUTH_CONFIG_PATH must name MLflow's settings of users; copy mlflow/auth.ini.example and edit it" >&2
    exit 2
fi

# The address of the database stays in the environment, since `ps` shows arguments to everybody.
export MLFLOW_BACKEND_STORE_URI
# One worker and no job execution were the fastest and smallest setup measured, see the README.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION="${MLFLOW_SERVER_ENABLE_JOB_EXECUTION:-false}"
export MLFLOW_DISABLE_TELEMETRY="${MLFLOW_DISABLE_TELEMETRY:-true}"

set -- --artifacts-destination "$MLFLOW_ARTIFACTS_DESTINATION" \
    --host "${MLFLOW_HOST:-127.0.0.1}" --port "${MLFLOW_PORT:-5000}" \
    --workers "${MLFLOW_WORKERS:-1}" --uvicorn-opts "--log-level ${MLFLOW_LOG_LEVEL:-warning}"
[ -z "${MLFLOW_SERVER_ALLOWED_HOSTS:-}" ] || set -- "$@" --allowed-hosts "$MLFLOW_SERVER_ALLOWED_HOSTS"
[ -z "${MLFLOW_SERVER_CORS_ALLOWED_ORIGINS:-}" ] || set -- "$@" --cors-allowed-origins "$MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"
[ -z "${MLFLOW_APP_NAME:-}" ] || set -- "$@" --app-name "$MLFLOW_APP_NAME"

# Ctrl-C reaches all processes of a terminal, and MLflow passes it on to its worker a second time, which then ends with a
# traceback. So the server runs in a session of its own, and this script asks it to end; a second Ctrl-C ends it at once.
server='' signals=0
stop() {
    signals=$((signals + 1))
    [ -n "$server" ] || return 0
    if [ "$signals" -eq 1 ]; then kill -s TERM "$server"; else kill -s KILL -- "-$server"; fi 2>/dev/null || true
}
trap stop INT TERM HUP
separate=$(command -v setsid || true) # macOS has none
$separate "${PYTHON:-python3}" -m mlflow server "$@" &
server=$!
[ "$signals" -eq 0 ] || kill -s TERM "$server"
while :; do
    status=0
    wait "$server" || status=$?
    kill -s 0 "$server" 2>/dev/null || break # otherwise, a signal has interrupted the wait
done
[ "$signals" -eq 0 ] || status=0
exit "$status"
