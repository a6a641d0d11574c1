"""The queue: one contract, one driver per place where tasks can live."""

from worker.queues.contract import Ended, Queue
from worker.queues.database import DatabaseQueue

__all__ = ["DatabaseQueue", "Ended", "Queue"]
