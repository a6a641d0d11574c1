#!/usr/bin/env bash
# Makes this host a worker host: PostgreSQL, Supervisor, workers, scheduler, log rotation, API. Safe to run again.
#   sudo ./setup-queue-worker.sh                      everything on this machine, secrets made for you
#   sudo ./setup-queue-worker.sh -e worker_numprocs=8 any further words go to ansible-playbook
#   sudo DATABASE_URL=postgresql://… ./setup-queue-worker.sh      with a PostgreSQL of yours; needed on the CentOS family
#   sudo INVENTORY=inventory/NAME ./setup-queue-worker.sh --limit "$(hostname -f)"
set -euo pipefail
cd "$(dirname "$0")"

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
fail() { echo "setup-queue-worker.sh: $*" >&2; exit 1; }
enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
find_python() { for p in python3.13 python3.12 python3.11 python3; do enough "$p" && echo "$p" && return; done; return 1; }

case ${1:-} in -h | --help) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit ;; esac

os_release=${OS_RELEASE:-/etc/os-release}
[ -r "$os_release" ] || fail "$os_release is missing: which system is this?"
# shellcheck source=/dev/null
. "$os_release"
case " ${ID:-} ${ID_LIKE:-} " in
    *" debian "* | *" ubuntu "*) family=debian ;;
    *" rhel "* | *" centos "* | *" fedora "*) family=redhat ;;
    *) fail "${PRETTY_NAME:-this system} is neither of the Debian/Ubuntu nor of the CentOS family" ;;
esac
[ "$(id -u)" = 0 ] || fail "run it as root: sudo $0"

secrets=$HOME/.config/moysklad-worker
inventory=${INVENTORY:-inventory/local}
[ -e "$inventory" ] || fail "INVENTORY=$inventory: there is no such inventory"
words=()
if [ "$inventory" = inventory/local ]; then
    if [ -n "${DATABASE_URL:-}" ]; then
        (umask 077 && mkdir -p "$secrets" && printf %s "$DATABASE_URL" >"$secrets/database_url")
    fi
    if [ -s "$secrets/database_url" ]; then
        words+=(--skip-tags database)
    elif [ "$family" = redhat ]; then
        fail "give the address of a PostgreSQL 14 or newer: sudo DATABASE_URL=postgresql://user:password@host/database $0"
    fi
fi
say "${PRETTY_NAME:-$ID}: $family family"

python=$(find_python) || python=
if [ "$family" = debian ]; then
    # The system's python3 has to be there as well: it has the package manager's module.
    if ! { [ -n "$python" ] && "$python" -c 'import ensurepip' 2>/dev/null && /usr/bin/python3 -c 'import apt' 2>/dev/null; }; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3 python3-venv python3-apt
    fi
elif [ -z "$python" ]; then
    dnf install -y -q python3.11
fi
python=$(find_python) || fail "Python 3.11 or newer is needed; ${PRETTY_NAME:-this system} has $(python3 --version 2>&1 || echo none)"

venv=/opt/moysklad-worker-ansible
if ! cmp -s requirements/ansible.txt "$venv/requirements.txt"; then
    say "Installing Ansible into $venv"
    "$python" -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r requirements/ansible.txt
    cp requirements/ansible.txt "$venv/requirements.txt"
fi

say "Setting this host up and deploying the checkout in $PWD"
"$venv/bin/ansible-playbook" -i "$inventory" ansible/playbooks/site.yml ${words[@]+"${words[@]}"} "$@"

say "Status"
supervisorctl status || true
monitor-queue.sh --queue || true
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
