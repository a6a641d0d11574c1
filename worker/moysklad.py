"""MoySklad's JSON API 1.2: a pure part that reads answers, and a thin client bound to one account.

Vendor pages are named by their path in `moysklad/api-remap-1.2-doc`.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit
from uuid import UUID

import backoff
import requests

from worker.accounts import Account
from worker.errors import Gone, RateLimited, Rejected, Retryable, TaskError, TooLarge, Unauthorized
from worker.limiter import LONG, Limiter
from worker.telemetry import emit_request

PAGE = 1000
"""Rows of a list page, and elements of a bulk request, at most: md/_restrictions.md."""
BULK_BYTES = 8_000_000
"""Size of a request body we keep below; the documents name both 10 MB (1044) and 20 MB."""

_RATE, _PARALLEL, _LOGIN_TRIES = 1049, 1073, 1048
_GONE = frozenset({1021, 1008, 1020, 2013})
_LARGE = frozenset({1044, 1088, 2007, 2022})
_TRANSIENT = frozenset({1036, 1065, 1074, 1083, 1095, 1999, 51007})
_RIGHTS = frozenset({1056, 1061, 1016, 1017, 1018, 1045, 1075, 14010, 14013, 30004, 1043, 1070, 30006, 41001, 47000})
_WITHOUT_HINT = 3.0
_KEPT_ALIVE = 20.0
"""Seconds for which an idle connection is counted on."""

HEADERS = {
    "Accept": "application/json;charset=utf-8",
    "Accept-Encoding": "gzip",
    "User-Agent": "moysklad-worker",
}
"""gzip is mandatory (else 415 without a body), `Accept` is one of two exact values: md/_general.md, error 1062."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: status, headers in lower case, body as bytes."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def decipher(answer: Answer) -> Any:
    """The answer's JSON value, or the error it stands for, by the body's shape and its codes.

    A JSON array is the per-item result of a bulk request whatever the status (a mixed one comes as
    HTTP 400). Raises RateLimited, Unauthorized, Gone, TooLarge, Rejected or Retryable.
    """
    value = _json(answer.body)
    if isinstance(value, list) and answer.status not in (401, 403, 429):
        return value
    if 200 <= answer.status < 300:
        if value is None and answer.body.strip():
            raise Retryable(f"HTTP {answer.status} with a body that is not JSON ({_glimpse(answer.body)})")
        return value
    raise error_of(answer.status, _errors(value), answer.headers, answer.body)


def error_of(
    status: int, errors: Sequence[dict[str, Any]], headers: Mapping[str, str] | None = None, body: bytes = b""
) -> TaskError:
    """The typed error for a status (0: an item inside an array) and the vendor's error list: md/_errors.md."""
    rejected = Rejected(status, errors)
    codes = rejected.codes
    said = f"HTTP {status}: {rejected}" if errors else f"HTTP {status} ({_glimpse(body)})"
    if _LOGIN_TRIES in codes:  # comes as a 429, but waiting does not make the token right
        return Unauthorized(said)
    if status == 429 or codes & {_RATE, _PARALLEL}:
        return RateLimited(said, wait_of(headers or {}))
    if status in (401, 403) or codes & _RIGHTS:
        return Unauthorized(said)
    if status == 413 or codes & _LARGE:
        return TooLarge(status, errors)
    if status >= 500 or codes & _TRANSIENT or (status == 0 and not errors):
        return Retryable(said)
    if status in (404, 410) or codes & _GONE:
        return Gone(status, errors)
    if not errors:
        return Rejected(status, [{"error": f"HTTP {status} ({_glimpse(body)})"}])
    return rejected


def wait_of(headers: Mapping[str, str]) -> float:
    """Seconds to wait after a 429. `X-Lognex-Retry-After` is in ms and absent for the parallel limit: §1.3."""
    try:
        return max(0.0, float(headers["x-lognex-retry-after"]) / 1000)
    except (KeyError, ValueError):
        return _WITHOUT_HINT


def id_of(reference: Any) -> UUID | None:
    """The id at the end of a reference's `meta.href`, whatever query follows it."""
    try:
        return UUID(urlsplit(reference["meta"]["href"]).path.rpartition("/")[2])
    except (KeyError, TypeError, ValueError):
        return None


def item_error(item: Any) -> TaskError | None:
    """The error of one element of a bulk answer; None when it is an entity."""
    if isinstance(item, dict) and "errors" in item:
        return error_of(0, _errors(item))
    if isinstance(item, dict) and "meta" in item:
        return None
    return Retryable(f"an element of the answer is neither an entity nor errors: {str(item)[:80]!r}")


def _json(body: bytes) -> Any:
    try:
        return json.loads(body) if body else None
    except ValueError:
        return None


def _errors(value: Any) -> list[dict[str, Any]]:
    errors = value.get("errors") if isinstance(value, dict) else None
    return [error for error in errors if isinstance(error, dict)] if isinstance(errors, list) else []


def _glimpse(body: bytes) -> str:
    return repr(body[:80].decode("utf-8", "replace")) if body else "no body"


class Client:
    """Speaks for one account, for as long as one task may take.

    Every request goes through the limiter, also the repeated ones. `deadline` (of `clock`) bounds
    what is waited for an answer.
    """

    def __init__(
        self,
        account: Account,
        base_url: str,
        limiter: Limiter,
        *,
        connect_timeout: float = 5,
        read_timeout: float = 300,
        deadline: float = float("inf"),
        clock: Callable[[], float] = time.monotonic,
        tries: int = 3,
    ) -> None:
        self.account = account
        self.base_url = base_url.rstrip("/")
        self._limiter = limiter
        self._timeouts = connect_timeout, read_timeout
        self._deadline = deadline
        self._clock = clock
        self._tries = tries
        self._spoke = float("-inf")
        self._session = requests.Session()
        self._session.headers.update(HEADERS)
        self._session.auth = self._sign  # as a mere header it would give way to a ~/.netrc

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self._session.close()

    def _sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self.account.token}"
        return request

    def meta(self, type: str, id: UUID) -> dict[str, Any]:
        """A reference to an entity of this account."""
        path = f"context/companysettings/{type}" if type == "pricetype" else f"entity/{type}"
        return {"meta": {"href": f"{self.base_url}/{path}/{id}", "type": type, "mediaType": "application/json"}}

    def get(self, path: str, **params: str | int) -> Any:
        """The value at `path`."""
        return self._repeat(lambda: self._unlimited("GET", path, params))

    def pages(self, path: str, **params: str | int) -> Iterator[list[dict[str, Any]]]:
        """All rows of a list, page by page, in a stable order.

        Offset paging is no snapshot: raises Retryable when the rows met are not as many as the list
        says it has, because something was created or deleted in between.
        """
        met: set[str] = set()
        offset, size = 0, 1
        while offset < size:
            page = self.get(path, limit=PAGE, offset=offset, order="id", **params)
            try:
                rows, size = page["rows"], int(page["meta"]["size"])
            except (TypeError, KeyError, ValueError):
                raise Retryable(f"GET {path}: the answer is not a list page") from None
            if not rows and offset < size:
                break
            met.update(row["id"] for row in rows)
            offset += len(rows)
            yield rows
        if len(met) != size:
            raise Retryable(f"GET {path}: {len(met)} rows came of {size}; the list changed while it was read")

    def rows(self, path: str, **params: str | int) -> list[dict[str, Any]]:
        """All rows of a list."""
        return [row for page in self.pages(path, **params) for row in page]

    def post(self, path: str, body: Any, *, repeatable: bool) -> Any:
        """Send `body` (a value, or JSON as bytes).

        `repeatable` says that sending it twice does no harm (updates, creates with syncId): only then
        is it repeated after an unknown outcome.
        """
        if repeatable:
            return self._repeat(lambda: self._unlimited("POST", path, {}, body))
        return self._unlimited("POST", path, {}, body)

    def _repeat(self, send: Callable[[], Any]) -> Any:
        """Again after a Retryable, while there are tries and time left."""
        attempt = backoff.on_exception(
            backoff.expo,
            Retryable,
            max_tries=self._tries,
            giveup=lambda _: self._left() <= 1,
            factor=0.5,
            max_value=8,
            logger=None,
        )(send)
        return cast(Any, attempt())

    def _unlimited(self, method: str, path: str, params: Mapping[str, str | int], body: Any = None) -> Any:
        """Send; after a 429, which had no effect, have everybody of this principal wait and send again.

        What the limiter itself raises passes through: nothing was sent, nobody else need wait.
        """
        wait = 1.0
        while True:
            answer = self._send(method, path, params, body)
            try:
                return decipher(answer)
            except RateLimited as error:
                error.wait = max(error.wait, wait * random.uniform(1, 1.25))
                self._limiter.pause(self.account, error.wait)
                if error.wait > LONG or self._left() < error.wait:
                    raise
                wait *= 2

    def _left(self) -> float:
        return self._deadline - self._clock()

    def _send(self, method: str, path: str, params: Mapping[str, str | int], body: Any = None) -> Answer:
        if body is None or isinstance(body, bytes):
            data = body
        else:
            data = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        connect, read = self._timeouts
        with self._limiter.acquire(self.account, fresh=self._clock() - self._spoke > _KEPT_ALIVE):
            began = self._clock()
            emit_request(
                "REQUEST", method=method, path=path, account=self.account.id, **params, bytes=len(data or b"")
            )
            try:
                response = self._session.request(
                    method,
                    f"{self.base_url}/{path}",
                    params=params,
                    data=data,
                    headers={"Content-Type": "application/json"} if data is not None else None,
                    timeout=(connect, max(1.0, min(read, self._left()))),
                    allow_redirects=False,
                )
                answer = Answer(
                    response.status_code,
                    {name.lower(): value for name, value in response.headers.items()},
                    response.content,
                )
                self._spoke = self._clock()
            except requests.RequestException as error:
                self._spoke = float("-inf")
                self._tell(method, path, type(error).__name__, began)
                raise Retryable(
                    f"{method} {path}: {type(error).__name__} after {self._clock() - began:.1f} s"
                ) from None
        self._tell(
            method, path, answer.status, began,
            bytes=len(answer.body), remaining=answer.headers.get("x-ratelimit-remaining", ""),
        )  # fmt: skip
        return answer

    def _tell(self, method: str, path: str, status: int | str, began: float, **fields: Any) -> None:
        duration = round((self._clock() - began) * 1000)
        emit_request(
            "RESPONSE",
            status=status,
            method=method,
            path=path,
            account=self.account.id,
            ms=duration,
            **fields,
        )
