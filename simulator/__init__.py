"""A stateful stand-in for MoySklad's JSON API 1.2 over real HTTP: accounts, limits, faults, evidence.

`create_app` gives the application, `serve_in_thread` serves it for a test, `python -m simulator` for good.
It shares no code with the worker it is used to test.
"""

from .app import Simulator, create_app
from .server import serve_in_thread

__all__ = ["Simulator", "create_app", "serve_in_thread"]
