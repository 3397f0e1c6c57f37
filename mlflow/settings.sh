# Defines read_settings FILE, which exports the lines NAME=value of a file. Variables of the environment take precedence.
# Sourced by mlflow/serve.sh and docs/deploy/start.sh. systemd and Docker read the same files.
read_settings() {
    while read -r line || [ -n "$line" ]; do
        case $line in '' | \#*) continue ;; esac
        name=${line%%=*} value=${line#*=}
        case $name in
        '' | "$line" | *[!A-Za-z0-9_]*)
            echo "$1: a line must read NAME=value, but got: $name" >&2
            exit 2
            ;;
        esac
        eval "present=\${$name+yes}"
        [ -n "$present" ] || export "$name=$value"
    done <"$1"
}
