"""Filters of the role worker: a topology as programs, and quoting."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from ansible.errors import AnsibleFilterError

OPTIONS = {"numprocs", "sleep", "tries", "max_time", "max_tasks", "batch", "memory", "timeout", "stopwaitsecs"}

Program = dict[str, Any]


def worker_programs(
    topology: str,
    common: Mapping[str, Any],
    high: Mapping[str, Any],
    low: Mapping[str, Any],
    accounts: Sequence[Mapping[str, Any]],
    rest: Mapping[str, Any],
) -> list[Program]:
    """The programs of a topology: name, queue (as for `--queue`) and the options of OPTIONS.

    One of them always listens to the queues of the other topologies too, after its own: what was enqueued
    before a change is not stranded.
    """
    if topology == "single":
        programs = [_program("moysklad-worker", "default,high,low,account-*", {}, "worker_…")]
    elif topology == "priority":
        programs = [
            _program("moysklad-worker-high", "high", high, "worker_high"),
            _program("moysklad-worker-low", "low,default,account-*", low, "worker_low"),
        ]
    elif topology == "account":
        programs = [_of_account(account) for account in accounts]
        programs.append(_program("moysklad-worker-rest", "account-*,default,high,low", rest, "worker_rest"))
    else:
        raise AnsibleFilterError(f"worker_topology is {topology!r}; it may be single, priority or account")
    _distinct(programs)
    return [{**common, **program} for program in programs]


def _of_account(account: Mapping[str, Any]) -> Program:
    name = str(account.get("name", ""))
    try:
        id = str(UUID(str(account.get("id", ""))))
    except ValueError:
        raise AnsibleFilterError(
            f"worker_accounts: account {name!r} has the id {account.get('id')!r}, which is no UUID"
        ) from None
    options = {"numprocs": 1, **{key: value for key, value in account.items() if key not in ("name", "id")}}
    return _program(f"moysklad-worker-{slug(name, id)}", f"account-*-{id}", options, f"worker_accounts, {name!r}")


def slug(name: str, id: str) -> str:
    """A program's name for an account: what of its name is plain letters and digits, then the id's first
    eight digits. Those tell `Shop 1` from `shop-1`, and a new account never renames the program of another."""
    ascii = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", ascii).strip("-")[:32].strip("-")
    return f"{words}-{id[:8]}" if words else id[:8]


def _program(name: str, queue: str, options: Mapping[str, Any], where: str) -> Program:
    unknown = sorted(set(options) - OPTIONS)
    if unknown:
        raise AnsibleFilterError(f"{where}: {', '.join(unknown)} is unknown; known are {', '.join(sorted(OPTIONS))}")
    return {"name": name, "queue": queue, **options}


def _distinct(programs: Sequence[Program]) -> None:
    queues: dict[str, str] = {}
    for program in programs:
        if program["name"] in queues:
            raise AnsibleFilterError(
                f"worker_accounts: {queues[program['name']]} and {program['queue']} would both be "
                f"the program {program['name']}; give one of them another name"
            )
        queues[program["name"]] = program["queue"]


def env_quote(value: object) -> str:
    """A value as python-dotenv reads it back unchanged, whatever is in it."""
    text = str(value)
    if isinstance(value, bool):
        text = text.lower()
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


class FilterModule:
    """What Ansible asks for."""

    def filters(self) -> dict[str, Any]:
        """Name and function of each filter."""
        return {"worker_programs": worker_programs, "env_quote": env_quote}
