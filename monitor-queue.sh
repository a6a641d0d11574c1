#!/usr/bin/env bash
# Shows the queue, the workers and what failed last.
#   monitor-queue.sh            once       monitor-queue.sh --watch    until Ctrl-C
#   monitor-queue.sh --json     one line for scripts
#   monitor-queue.sh --queue    once, without Supervisor's list
set -euo pipefail

command=${MOYSKLAD_WORKER:-/opt/moysklad-worker/current/venv/bin/moysklad-worker}
env_file=${MOYSKLAD_WORKER_ENV:-/etc/moysklad-worker/worker.env}
user=${MOYSKLAD_WORKER_USER:-moysklad}

case ${1:-} in
    '' | --queue) words=(--once) ;;
    --watch) words=() ;;
    --json) words=(--once --json) ;;
    *) sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
[ -x "$command" ] || { echo "$command is not there: nothing has been deployed to this host yet" >&2; exit 1; }

if [ "${1:-}" != --json ] && [ "${1:-}" != --queue ]; then
    supervisorctl status 'moysklad-worker*' 2>/dev/null || supervisorctl status || true
fi
if [ "$(id -u)" = 0 ]; then
    # As root it might create the log files, and the workers could not write them.
    exec runuser -u "$user" -- "$command" --env-file "$env_file" monitor "${words[@]}"
fi
exec "$command" --env-file "$env_file" monitor "${words[@]}"
