#!/usr/bin/env bash
# Replaces the workers of this host, one at a time: each finishes its batch, and the next one is asked to end only when
# the successor of the one before works. `supervisorctl restart` would stop all of them first.
#   restart-queue.sh [SECONDS]    how long one may take to finish, 330 if not said
set -euo pipefail

drain=${1:-330}
healthy=${MOYSKLAD_WORKER_HEALTHY:-/usr/local/lib/moysklad-worker/healthy}
root=${MOYSKLAD_WORKER_ROOT:-/opt/moysklad-worker}
case $drain in *[!0-9]*) sed -n '2,4s/^# \{0,1\}//p' "$0"; exit 2 ;; esac
release=$(basename "$(readlink "$root/current")") || { echo "nothing has been deployed to this host yet" >&2; exit 1; }

state() { supervisorctl status "$1" | awk '{print $2}'; }
pid() { supervisorctl pid "$1"; }
until_true() { # seconds, command ...
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.5
    done
}
replaced() { [ "$(state "$1")" = RUNNING ] && [ "$(pid "$1")" != "$2" ]; }
works() { "$healthy" "${1#*:}" "$release" >/dev/null 2>&1; }

names=$(supervisorctl status | awk '$1 ~ /^moysklad-worker/ && $2 == "RUNNING" {print $1}')
[ -n "$names" ] || { echo "no worker is RUNNING here: supervisorctl status" >&2; exit 1; }
for name in $names; do
    before=$(pid "$name") began=$SECONDS
    supervisorctl signal TERM "$name" >/dev/null
    until_true "$drain" replaced "$name" "$before" || {
        echo "$name pid $before has not finished after $drain s. It ends by itself when its batch is done; see" \
            "supervisorctl tail $name" >&2
        exit 1
    }
    until_true 60 works "$name" || {
        echo "$name was started anew and does not work after 60 s: $healthy ${name#*:} $release" >&2
        exit 1
    }
    echo "$name: pid $before -> $(pid "$name"), $((SECONDS - began)) s"
done
