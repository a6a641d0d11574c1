#!/usr/bin/python
"""Ansible module: replace Supervisor's processes one at a time.

Here it speaks Ansible; the work is done in module_utils/rolling, whose first page says what is where.
"""

# ruff: noqa: E402  Ansible wants the documentation above the imports.

from __future__ import annotations

DOCUMENTATION = r"""
module: supervisor_roll
short_description: Roll, stop or start processes of Supervisor without a gap
description:
  - Supervisor has no rolling restart. C(supervisorctl restart GROUP:*) and C(supervisorctl update) stop every process
    of a group, wait for the slowest, and start them all again.
  - This module asks one process after another to end (TERM, sent as a signal, so that Supervisor's own SIGKILL clock
    does not run), lets it finish its work, waits until supervisord has replaced it and the new one is RUNNING and
    healthy, and only then goes to the next. Of one group (a C([program:x]) section is a group) never more than
    O(max_unavailable) processes are not RUNNING. Groups are rolled side by side.
  - It speaks XML-RPC to supervisord's unix socket and needs neither C(supervisorctl) nor a Python library. Supervisor
    4.2.1 or newer.
  - When one process fails, no further one is touched, those in hand are seen through, and the module fails.
options:
  socket:
    description:
      - Path of supervisord's socket, C(file) in C([unix_http_server]).
    type: path
    required: true
  processes:
    description:
      - Shell patterns on C(group:name), as C(supervisorctl status) prints it.
    type: list
    elements: str
    required: true
  state:
    description:
      - V(rolled) replaces what is RUNNING and starts what is EXITED, FATAL or in BACKOFF. What an operator has
        STOPPED stays so.
      - V(started) starts whatever is not RUNNING, all at once.
      - V(stopped) asks all to stop at once, so that the whole takes as long as the slowest. Here supervisord's own
        C(stopwaitsecs) applies, after which it kills.
    type: str
    choices: [rolled, started, stopped]
    default: rolled
  max_unavailable:
    description:
      - How many processes of one group may be not RUNNING (or not yet healthy) at a time while rolling. Those an
        operator has STOPPED do not count; those of the group that O(processes) does not name do.
    type: int
    default: 1
  drain_timeout:
    description:
      - Seconds a process may take to end after TERM. Longer than its longest task.
    type: float
    default: 300
  ready_timeout:
    description:
      - Seconds its successor may take to be RUNNING and healthy.
    type: float
    default: 60
  on_timeout:
    description:
      - What to do with a process that has not ended after O(drain_timeout).
      - V(fail) leaves it alone; it has its TERM, and supervisord will replace it whenever it ends.
      - V(kill) sends SIGKILL and goes on. It is sent as a signal, not as a stop, so that the process comes back even
        if the controller is lost at that moment; C(killasgroup) has no effect on it.
    type: str
    choices: [fail, kill]
    default: fail
  health:
    description:
      - Command, as a list, that ends with 0 when the process works. V({process}) becomes the name of the process,
        V({release}) the O(release). Repeated until O(ready_timeout).
      - It must only look; with O(skip_healthy) it is run in check mode too.
    type: list
    elements: str
  health_environment:
    description:
      - Environment variables for O(health), added to the module's own. The same two words are replaced in the values.
        No place for secrets.
    type: dict
    default: {}
  release:
    description:
      - The release the processes must run after this.
    type: str
    default: ''
  skip_healthy:
    description:
      - Leave a process alone if O(health) says that it already runs O(release). A second run, after one that was cut
        off, then rolls only the rest. Needs O(health) with V({release}) in it, and O(release).
    type: bool
    default: false
  update:
    description:
      - Have supervisord read its files again and put the changes of the groups that O(processes) names into effect,
        before anything is rolled. Other groups are left alone.
      - New groups are added and must become healthy, then changed ones are replaced one group at a time, then removed
        ones are drained and removed. Supervisor can change a group only as a whole, so all processes of a changed
        group drain at once, under C(stopwaitsecs), and an operator's stop does not outlive the change.
      - Not with O(state=stopped).
    type: bool
    default: false
attributes:
  check_mode:
    description: Says what would be done. Signals, starts and stops nothing; O(update) has the files read, no more.
    support: full
  diff_mode:
    description: Shows name, state and pid before and after.
    support: full
notes:
  - Two of these at once on one host do not know of each other. Hold a lock around a deploy.
  - A process gets one TERM, also from a run that follows one that was cut off or has timed out, because to many
    programs a second one means "at once". Who has been asked is kept in a file beside the socket, C(SOCKET.roll),
    for as long as the process lives.
  - It is silent while it waits. Set C(ServerAliveInterval) for ssh, or use C(async).
author:
  - moysklad-worker
"""

EXAMPLES = r"""
- name: Replace the workers one by one
  supervisor_roll:
    socket: /var/run/supervisor.sock
    processes: ["moysklad-*:*"]
    drain_timeout: 600
    release: "{{ release_id }}"
    health: [/opt/moysklad/current/venv/bin/moysklad-worker, health, --process, "{process}", --release, "{release}"]
    skip_healthy: true

- name: Put a changed configuration into effect, then roll what it did not touch
  supervisor_roll:
    socket: /run/supervisor/supervisor.sock
    processes: ["moysklad-*:*"]
    update: true

- name: Stop all workers and let each finish its task
  supervisor_roll:
    socket: /run/supervisor/supervisor.sock
    processes: ["moysklad-*:*"]
    state: stopped
    drain_timeout: 600
"""

RETURN = r"""
msg:
  description: What was done, in a sentence; on failure one paragraph per process with the end of its log.
  returned: always
  type: str
  sample: "3 rolled, 1 left stopped"
processes:
  description: What became of each selected process.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: Name of the process.
      type: str
    group:
      description: Its group.
      type: str
    pid_before:
      description: Its pid at the beginning, 0 when there was none.
      type: int
    pid_after:
      description: Its pid at the end, 0 when there is none, null in check mode when it would be a new one.
      type: int
    waited:
      description: Seconds from the first thing done to it until its end was reached.
      type: float
    outcome:
      description: What was done. V(killed) is a process that was replaced (or stopped) by force.
      type: str
      sample: rolled
      choices: [rolled, skipped, started, stopped, left_stopped, killed, failed]
    reason:
      description: Why, where the outcome alone does not say it.
      type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.rolling.convergence import converge
from ansible.module_utils.rolling.options import Options
from ansible.module_utils.rolling.roll import Roll


def main() -> None:
    """Speak Ansible."""
    module = AnsibleModule(
        argument_spec={
            "socket": {"type": "path", "required": True},
            "processes": {"type": "list", "elements": "str", "required": True},
            "state": {"type": "str", "choices": ["rolled", "started", "stopped"], "default": "rolled"},
            "max_unavailable": {"type": "int", "default": 1},
            "drain_timeout": {"type": "float", "default": 300},
            "ready_timeout": {"type": "float", "default": 60},
            "on_timeout": {"type": "str", "choices": ["fail", "kill"], "default": "fail"},
            "health": {"type": "list", "elements": "str"},
            "health_environment": {"type": "dict", "default": {}},
            "release": {"type": "str", "default": ""},
            "skip_healthy": {"type": "bool", "default": False},
            "update": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    try:
        options = Options.from_params(module.params)
    except ValueError as error:
        module.fail_json(msg=str(error))
    report = converge(Roll.of(options), module.check_mode)
    for warning in report.warnings:
        module.warn(warning)
    if report.failures:
        module.fail_json(**report.result())
    module.exit_json(**report.result())


if __name__ == "__main__":
    main()
