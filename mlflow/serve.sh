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
# traceback. So the server runs in a session of its own, and this process asks it to end; a second Ctrl-C ends it at once.
exec "${PYTHON:-python3}" -c '
import os, signal, subprocess, sys

server, num_signals = None, 0


def stop(*_):
    global num_signals
    num_signals += 1
    if server is not None:
        try:
            server.terminate() if num_signals == 1 else os.killpg(server.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, stop)
server = subprocess.Popen([sys.executable, *sys.argv[1:]], start_new_session=True)
if num_signals:
    server.terminate()
status = server.wait()
sys.exit(0 if num_signals else status if status >= 0 else 128 - status)
' -m mlflow server "$@"
