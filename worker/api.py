"""The HTTP API and its page: check, call, answer.

The page is static and holds no data. Everything else but `/health` wants `Authorization: Bearer API_TOKEN`;
without an API_TOKEN, which settings allow on loopback only, it wants to be asked from this machine.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hmac import compare_digest
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from uuid import UUID

import uvicorn
from fastapi import FastAPI, Query, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from psycopg.errors import UndefinedColumn, UndefinedTable
from pydantic import AwareDatetime, BaseModel, ConfigDict
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker import __version__
from worker.accounts import FOREVER
from worker.app import App
from worker.db import AWAY, migrations
from worker.errors import ConfigError, Conflict, NotFound, SchemaMismatch, WorkerError
from worker.monitor import parked_reason
from worker.settings import is_loopback
from worker.telemetry import emit

OPEN = frozenset({"/", "/health"})
"""Paths that need no token."""

_AWAY = "PostgreSQL does not answer; ask again in a few seconds, /health tells when it is back"
_ALIEN = "the database's schema does not fit this release: run `moysklad-worker migrate`"
_UNAVAILABLE: tuple[type[Exception], ...] = (*AWAY, UndefinedTable, UndefinedColumn, SchemaMismatch)
_ERRORS: tuple[type[Exception], ...] = (WorkerError, *_UNAVAILABLE, RequestValidationError, HTTPException)
_PROBLEM = ("account_id", "entity_type", "entity_id", "operation", "status", "result", "attempts", "error")

AccountId = Annotated[UUID, InPath(alias="accountId", description="A main account (all its children) or a child.")]
RunId = Annotated[UUID, InPath(alias="runId", description="What the sync route answered as `run`.")]
Limit = Annotated[int, Query(ge=1, le=200, description="How many at most.")]
TaskId = Annotated[int, InPath(alias="taskId", description="As /api/tasks tells it.", ge=1, lt=2**63)]
Status = Literal["pending", "processing", "completed", "failed"]
Json = dict[str, Any]


class What(BaseModel):
    """A queue, by its name or with `*`, or an account."""

    model_config = ConfigDict(extra="forbid")

    queue: str | None = None
    account: UUID | None = None


class Halt(What):
    """What is to be paused, until when and why."""

    until: AwareDatetime | None = None
    reason: str = "paused through the API"


class Pending(What):
    """Which pending tasks; all that is given must hold."""

    ids: list[int] | None = None
    reason: str = "cancelled through the API"


class Failed(BaseModel):
    """Which failed tasks; all that is given must hold."""

    model_config = ConfigDict(extra="forbid")

    ids: list[int] | None = None
    account: UUID | None = None
    since: AwareDatetime | None = None
    error_class: str | None = None


def create_api(app: App) -> FastAPI:
    """The ASGI application over the wired app."""
    api = FastAPI(title="MoySklad worker", version=__version__, docs_url=None, redoc_url=None)
    secret = app.settings.API_TOKEN
    api.add_middleware(_Gate, token=secret.get_secret_value() if secret else None)
    for kind in _ERRORS:
        api.add_exception_handler(kind, _on_error)

    @api.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> HTMLResponse:
        """The page."""
        html, policy = _page()
        return HTMLResponse(html, headers={"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"})

    @api.get("/health")
    def health(response: Response) -> Json:
        """Whether the service can work: 200, or 503 with the reason."""
        try:
            app.require_schema()
            return {"status": "ok", "schema": migrations()[-1][0], **app.monitor.pulse()}
        except _UNAVAILABLE as error:
            response.status_code, reason = _explain(error)
            return {"status": "unavailable", "reason": reason}

    @api.post("/api/sync/{accountId}/products/all", status_code=202)
    def sync_all(account: AccountId, response: Response) -> Json:
        """Begin a sync of all goods: of a main account to its children, of a child from its main; or join it."""
        run, new = app.start_sync(account, requested_by="api")
        url = f"/api/runs/{run}"
        response.headers["Location"] = url
        return {"run": run, "joined": not new, "account": account, "url": url}

    @api.get("/api/runs/{runId}")
    def run(id: RunId) -> Json:
        """One run with its counts, and up to 50 of its problems."""
        row = _run(app.runs.get(id))
        return row | {"problems": [{name: p[name] for name in _PROBLEM} for p in app.runs.problems(id)]}

    @api.get("/api/runs")
    def runs(account: UUID | None = None, limit: Limit = 20) -> list[Json]:
        """The newest runs, of an account or of all; `counts` is null while a run is under way."""
        return [_run(row) for row in app.runs.newest(account, limit)]

    @api.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> PlainTextResponse:
        """The fleet's state and counters for Prometheus; wants the token like everything else."""
        return PlainTextResponse(app.metrics(), media_type=CONTENT_TYPE_LATEST)

    @api.get("/api/queue")
    def queue() -> Json:
        """What waits, runs and failed, per queue and account, and which workers are alive."""
        return app.monitor.snapshot()

    @api.get("/api/tasks")
    def tasks(status: Status = "failed", account: UUID | None = None, limit: Limit = 20) -> list[Json]:
        """The tasks of a status that changed last."""
        return [dict(row) for row in app.queue.peek(status, account_id=account, limit=limit)]

    @api.get("/api/tasks/{taskId}")
    def task(id: TaskId) -> Json:
        """One task, with every attempt of it that ended badly."""
        row = app.queue.find(id)
        if row is None:
            raise NotFound(f"there is no task {id}; /api/tasks lists the newest")
        return dict(row)

    @api.post("/api/queue/retry")
    def retry(which: Failed) -> Json:
        """Give failed tasks a new set of attempts: `{}` means all but the cancelled ones."""
        return {
            "retried": app.retry_failed(
                ids=which.ids, account=which.account, since=which.since, error_class=which.error_class
            )
        }

    @api.post("/api/queue/cancel")
    def cancel(which: Pending) -> Json:
        """End pending tasks as cancelled; at least one of ids, account and queue (`*` as wildcard) must be given."""
        if which.ids is None and which.account is None and which.queue is None:
            raise ConfigError("say which tasks: ids, account or queue")
        cancelled = app.cancel(ids=which.ids, account=which.account, queue=which.queue, reason=which.reason)
        return {"cancelled": cancelled.tasks, "processing": cancelled.processing}

    @api.post("/api/queue/pause")
    def pause(halt: Halt) -> Json:
        """Have nothing of a queue (`*` as wildcard), or of an account, be claimed until then, or until resumed."""
        if halt.account:
            app.pause(halt.account, halt.reason, halt.until or FOREVER)
        else:
            app.pauses.pause(_queue_of(halt), halt.until or FOREVER, halt.reason)
        return {"paused": halt.account or halt.queue}

    @api.post("/api/queue/resume")
    def resume(what: What) -> Json:
        """Have a paused queue, named as it was paused, or an account go on."""
        if what.account:
            app.unpark(what.account)
        elif not app.pauses.resume(_queue_of(what)):
            raise NotFound(f"queue {what.queue!r} is not paused; /api/queue lists those that are")
        return {"resumed": what.account or what.queue}

    @api.post("/api/queue/restart")
    def restart() -> Json:
        """Have every worker end after its batch; Supervisor starts it anew."""
        return {"workers": app.restart_workers()}

    @api.get("/api/accounts")
    def accounts() -> list[Json]:
        """The accounts and how they are linked, without their tokens."""
        names = ("id", "name", "role", "children", "mains")
        return [
            {name: row[name] for name in names} | {"parked_reason": parked_reason(row)}
            for row in app.accounts.overview()
        ]

    return api


def serve(app: App, *, port_file: Path | None = None) -> None:
    """Serve until SIGTERM or SIGINT; the port file appears once connections are accepted.

    Raises ConfigError when API_HOST and API_PORT cannot be listened on, or the port file cannot be written.
    """
    config = uvicorn.Config(
        create_api(app),
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=10,
    )
    server = uvicorn.Server(config)
    with _listening(app.settings.API_HOST, app.settings.API_PORT) as listener, _stopped_by_signals(server):
        host, port = listener.getsockname()[:2]
        emit("api.start", host=host, port=port)
        if port_file is not None:
            _write(port_file, str(port))
        server.run(sockets=[listener])
        emit("api.stop", host=host, port=port)


def _write(file: Path, text: str) -> None:
    temporary = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.replace(file)
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}") from None


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:  # the latter for a name that is none, such as `a..b`
        raise _cannot_listen(host, port, error) from None
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(512)
        except OSError as error:
            raise _cannot_listen(host, port, error) from None
        yield listener


def _cannot_listen(host: str, port: int, error: Exception) -> ConfigError:
    reason = (error.strerror if isinstance(error, OSError) else None) or "that is no host name"
    return ConfigError(f"cannot listen on API_HOST {host!r}, API_PORT {port}: {reason}; choose others")


@contextmanager
def _stopped_by_signals(server: uvicorn.Server) -> Iterator[None]:
    """uvicorn raises the signal that stopped it once more; with this handler around that ends well."""

    def stop(*_: object) -> None:
        server.should_exit = True

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Gate:
    """Who may ask: whoever has the token, or, where there is none, a program or page of this machine.

    A browser sends what any page tells it to: `Host` gives away a foreign name that was made to point here
    (DNS rebinding), `Origin` a foreign page that posts here.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def send_guarded(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                headers["Cache-Control"] = "no-store"
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            await (self._refusal(scope) or self._app)(scope, receive, send_guarded)
        except Exception as error:
            # Handled here and not by a handler for Exception: after such a one Starlette raises the error once
            # more, and uvicorn would print it past our log and its redaction.
            if begun:
                raise
            await _on_error(Request(scope), error)(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        if self._token is not None:
            if scope["path"] in OPEN or _carries(headers, self._token):
                return None
            sentence = "send the header `Authorization: Bearer TOKEN` with the API_TOKEN of this service"
            if "authorization" in headers:
                sentence = f"the token in the header Authorization is not this service's: {sentence}"
            return _error(401, sentence, {"WWW-Authenticate": "Bearer"})
        host = headers.get("host", "")
        if not _is_local(host):
            return _error(400, f"host {host!r} is not this machine: set API_TOKEN, or ask for 127.0.0.1 or localhost")
        origin = headers.get("origin")
        if scope["method"] not in ("GET", "HEAD") and origin is not None and _netloc(origin) != host:
            return _error(403, f"origin {origin!r} is not this page, which is at {host!r}: press the button there")
        return None


def _carries(headers: Headers, token: str) -> bool:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and compare_digest(given.strip().encode("latin-1"), token.encode())


def _is_local(host: str) -> bool:
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _on_error(request: Request, error: Exception) -> Response:
    status, sentence = _explain(error)
    path = request.url.path
    if status == 503:
        emit("api.unavailable", level="warning", path=path, reason=str(error).strip())
    if status == 500:
        emit("api.crash", level="error", error=error, path=path)
    if isinstance(error, HTTPException):
        sentence = f"{request.method} {path}: {sentence}; /openapi.json lists the routes"
        return _error(status, sentence, dict(error.headers or {}))
    return _error(status, sentence)


def _explain(error: Exception) -> tuple[int, str]:
    """The one place where an error becomes a status and a sentence."""
    match error:
        case NotFound():
            return 404, str(error)
        case Conflict():
            return 409, str(error)
        case ConfigError():
            return 400, str(error)
        case SchemaMismatch():
            return 503, str(error)
        case UndefinedTable() | UndefinedColumn():
            return 503, _ALIEN
        case RequestValidationError():
            return 422, "; ".join(_sentence(problem) for problem in error.errors())
        case HTTPException():
            return error.status_code, error.detail
        case _ if isinstance(error, AWAY):
            return 503, _AWAY
        case _:
            return 500, "this is a fault of the service; its log tells more under api.crash"


def _sentence(problem: Json) -> str:
    where, value = ".".join(map(str, problem["loc"][1:])), problem.get("input")
    if problem["type"].startswith("uuid"):
        known = "/api/runs lists the newest runs" if where == "runId" else "/api/accounts lists the accounts"
        return f"{where} {value!r} is not a UUID such as 8d0fa0a4-1d7c-11e4-8c21-0002a5d5c51b; {known}"
    return f"{where} {value!r} does not fit: {problem['msg'][:1].lower()}{problem['msg'][1:]}"


def _error(status: int, sentence: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": sentence}, status, headers)


def _queue_of(what: What) -> str:
    if not what.queue:
        raise ConfigError("name a queue or an account")
    return what.queue


def _run(row: Json) -> Json:
    if row["finished_at"] is None:
        return row | {"status": "running"}
    counts = row["counts"] or {}
    status = "failed" if counts.get("failed") else "waiting" if counts.get("pending") else "completed"
    return row | {"status": status}


@cache
def _page() -> tuple[str, str]:
    """The page and the policy that lets the browser run its own script and style and nothing else."""
    html = files("worker").joinpath("page.html").read_text("utf-8")
    policy = ["default-src 'none'", "connect-src 'self'", "img-src data:", "base-uri 'none'", "form-action 'none'"]
    for directive, tag in (("script-src", "script"), ("style-src", "style")):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = b64encode(hashlib.sha256(text.encode()).digest()).decode()
        policy.append(f"{directive} 'sha256-{digest}'")
    return html, "; ".join([*policy, "frame-ancestors 'none'"])
