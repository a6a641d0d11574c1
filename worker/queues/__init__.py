"""The queue: one contract, one driver per place where tasks can live."""

from worker.queues.contract import Cancelled, Effect, Ended, Queue
from worker.queues.database import DatabaseQueue
from worker.queues.sync import SyncQueue

__all__ = ["Cancelled", "DatabaseQueue", "Effect", "Ended", "Queue", "SyncQueue"]
