"""The queue: one contract, one driver per place where tasks can live."""

from worker.queues.contract import Cancelled, Effect, Ended, Queue
from worker.queues.database import DatabaseQueue

__all__ = ["Cancelled", "DatabaseQueue", "Effect", "Ended", "Queue"]
