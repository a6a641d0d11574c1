"""What cron calls every minute, on every host; the first to come in a minute does that minute's work."""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

from worker.db import Database
from worker.errors import WorkerError
from worker.queues import Queue
from worker.runs import Runs
from worker.settings import Settings
from worker.task import Priority
from worker.telemetry import emit

StartSync = Callable[..., tuple[UUID, bool]]


def run(
    db: Database, queue: Queue, runs: Runs, settings: Settings, start_sync: StartSync, now: datetime
) -> dict[str, Any] | None:
    """Rescue, end runs, prune, start planned syncs; what was done, or None if another host did this minute.

    Retries need nothing here: a task put back for later is claimed when its time comes.
    """
    rescued = queue.rescue()
    minute = now.replace(second=0, microsecond=0)
    if not db.fetch("tick", minute=minute, host=socket.gethostname()):
        emit("schedule.skip", minute=minute.isoformat())
        return None
    runs.finish_all()
    pruned = queue.prune(completed_days=settings.KEEP_COMPLETED_DAYS, failed_days=settings.KEEP_FAILED_DAYS, now=now)
    db.fetch("forget_principals")
    db.fetch("forget_updates")
    started = []
    for _, child in runs.due(now):
        try:
            run_id, new = start_sync(child, requested_by="schedule", priority=Priority.BACKGROUND)
        except WorkerError as error:
            emit("schedule.reject", level="warning", child=child, reason=str(error))
        else:
            started += [str(run_id)] if new else []
    done: dict[str, Any] = {"minute": minute.isoformat(), "rescued": rescued, "pruned": pruned, "started": started}
    emit("schedule.run", **done)
    return done
