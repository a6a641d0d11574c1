#!/usr/bin/env bash
# Makes this host a worker host: PostgreSQL, Supervisor, workers, scheduler, log rotation, API. Safe to run again.
#   sudo ./setup-queue-worker.sh                      everything on this machine, secrets made for you
#   sudo ./setup-queue-worker.sh -e worker_numprocs=8 any further words go to ansible-playbook
#   sudo INVENTORY=inventory/NAME ./setup-queue-worker.sh --limit "$(hostname -f)"
set -euo pipefail
cd "$(dirname "$0")"

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
fail() { echo "$*" >&2; exit 1; }

case ${1:-} in -h | --help) sed -n '2,5s/^# \{0,1\}//p' "$0"; exit ;; esac
[ "$(id -u)" = 0 ] || fail "run it as root: sudo $0"

# shellcheck source=/dev/null
. /etc/os-release
case " $ID ${ID_LIKE:-} " in
    *" debian "* | *" ubuntu "*) family=debian ;;
    *" rhel "* | *" centos "* | *" fedora "*) family=redhat ;;
    *) fail "$PRETTY_NAME is neither of the Debian nor of the CentOS family" ;;
esac
say "$PRETTY_NAME"

python=$(for p in python3.13 python3.12 python3.11 python3; do
    if "$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo "$p" && break; fi
done)
if [ "$family" = debian ]; then
    packages=(python3 python3-venv python3-apt)
    if ! { [ -n "$python" ] && "$python" -c 'import ensurepip, apt' 2>/dev/null; }; then
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${packages[@]}"
    fi
    python=${python:-python3}
elif [ -z "$python" ]; then
    dnf install -y -q python3.11 && python=python3.11
fi

venv=/opt/moysklad-worker-ansible
if [ ! -x "$venv/bin/ansible-playbook" ]; then
    say "Installing Ansible into $venv"
    "$python" -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check 'ansible-core>=2.19,<2.22'
fi

say "Setting this host up and deploying the checkout in $PWD"
"$venv/bin/ansible-playbook" -i "${INVENTORY:-inventory/local}" ansible/playbooks/site.yml "$@"

say "Workers"
supervisorctl status 'moysklad-worker:*' 'moysklad-api:*' || true
cat <<'END'

To                            do
see the queue                 monitor-queue.sh              (watch it: monitor-queue.sh --watch)
replace the workers           restart-queue.sh              (one at a time, each after its batch)
stop and start them           supervisorctl stop moysklad-worker:*   supervisorctl start moysklad-worker:*
see what they say             supervisorctl tail -f moysklad-worker:moysklad-worker_00
see requests and answers      tail -f /var/log/moysklad-worker/sync.log
add an account                moysklad-worker accounts add --help
deploy a new version          sudo ./setup-queue-worker.sh  again, from the new checkout
END
