"""MoySklad's JSON API 1.2: a pure part that reads answers, and a thin client bound to one account.

Vendor pages are named by their path in `moysklad/api-remap-1.2-doc`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit
from uuid import UUID

import backoff
import requests
from backoff.types import Details
from urllib3.exceptions import HTTPError, NewConnectionError

from worker.accounts import Account
from worker.breaker import Breaker
from worker.errors import (
    Gone,
    RateLimited,
    Rejected,
    Retryable,
    Slow,
    TaskError,
    TooLarge,
    Unauthorized,
    Unreachable,
)
from worker.limiter import LONG, Limiter
from worker.punctual import PunctualAdapter
from worker.telemetry import emit_request

PAGE = 1000
"""Rows of a list page, and elements of a bulk request, at most: md/_restrictions.md."""
BULK_BYTES = 8_000_000
"""Size of a request body we keep below; the documents name both 10 MB (1044) and 20 MB."""

DIVISIBLE = frozenset({400, 404, 409, 410, 412, 413, 422})
"""Statuses of a refused array that may be one element's fault; any other would meet each element alike."""

_RATE, _PARALLEL, _LOGIN_TRIES = 1049, 1073, 1048
_GONE = frozenset({1021, 1008, 1020, 2013})
_LARGE = frozenset({1044, 1088, 2007, 2022})
_TRANSIENT = frozenset({1036, 1065, 1074, 1083, 1095, 1999, 51007})
_RIGHTS = frozenset({1056, 1061, 1016, 1017, 1018, 1045, 1075, 14010, 14013, 30004, 1043, 1070, 30006, 41001, 47000})
_KEPT_ALIVE = 20.0
"""Seconds for which an idle connection is counted on."""
_MARGIN = 2.0
"""Seconds before a task's time is over in which nothing is waited for any more: what came of it is to be recorded."""
_THROTTLED = 5
"""Times one request is sent that is answered 429 each time; then its task is put off."""
_PROBE = "entity/uom"
"""A list every account has, and everybody may read: what is asked to see whether MoySklad is back."""

_T = TypeVar("_T")

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
        return RateLimited(said, wait_of(headers or {}), parallel=_PARALLEL in codes)
    if status in (401, 403) or codes & _RIGHTS:
        return Unauthorized(said)
    if status == 413 or codes & _LARGE:
        return TooLarge(status, errors)
    if status >= 500 or codes & _TRANSIENT or (status == 0 and not errors):
        return Retryable(said)
    if status in (404, 410) or codes & _GONE:
        return Gone(status, errors)
    if not errors:
        where = f" to {headers['location']}" if headers and "location" in headers else ""
        return Rejected(status, [{"error": f"HTTP {status}{where} ({_glimpse(body)})"}])
    return rejected


def wait_of(headers: Mapping[str, str]) -> float:
    """Seconds to wait after a 429, 0 where it does not say. `X-Lognex-Retry-After` is in ms: md/_general.md."""
    try:
        wait = float(headers["x-lognex-retry-after"]) / 1000
    except (KeyError, ValueError):
        return 0.0
    return wait if 0 < wait < float("inf") else 0.0


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
    if isinstance(item, dict) and "meta" in item and _is_id(item.get("id")):
        return None
    return Retryable(f"an element of the answer is neither an entity nor errors: {str(item)[:80]!r}")


def _is_id(value: Any) -> bool:
    try:
        UUID(value)
    except (AttributeError, TypeError, ValueError):
        return False
    return True


def _json(body: bytes) -> Any:
    try:
        return json.loads(body) if body else None
    except (ValueError, RecursionError):
        return None


def _errors(value: Any) -> list[dict[str, Any]]:
    errors = value.get("errors") if isinstance(value, dict) else None
    return [error for error in errors if isinstance(error, dict)] if isinstance(errors, list) else []


def _glimpse(body: bytes) -> str:
    return repr(body[:80].decode("utf-8", "replace")) if body else "no body"


class Client:
    """Speaks for one account, for as long as one task may take.

    Every request goes through the limiter, also the repeated ones, and none is sent while the account's
    breaker is open. A request is over, whole answer included, after `read_timeout` seconds, or shortly before
    `deadline` (of `clock`). `current` tells what is known of the account now: whether its token is a newer one.
    """

    def __init__(
        self,
        account: Account,
        base_url: str,
        limiter: Limiter,
        *,
        breaker: Breaker | None = None,
        current: Callable[[], Account] | None = None,
        connect_timeout: float = 5,
        read_timeout: float = 300,
        effect_seconds: float = 300,
        deadline: float = float("inf"),
        clock: Callable[[], float] = time.monotonic,
        tries: int = 6,
    ) -> None:
        self.account = account
        self.base_url = base_url.rstrip("/")
        self.urgent = False
        """Whether somebody waits for this task: then its requests go before bulk work."""
        self.read_timeout = read_timeout
        self.effect_seconds = effect_seconds
        """For how long after it was sent a request may still take effect, though its answer was lost."""
        self.lost = 0
        """Requests sent again because nobody knows what became of the one before."""
        self._limiter = limiter
        self._breaker = breaker
        self._current = current
        self._connect_timeout = connect_timeout
        self._deadline = deadline - min(_MARGIN, 0.1 * (deadline - clock()))
        self.clock = clock
        self._tries = tries
        self._admitted = False
        self._spoke = float("-inf")
        self._until = float("inf")
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, PunctualAdapter(lambda: self._until - clock()))
        self._session.headers.update(HEADERS)
        self._session.auth = self._sign  # as a mere header it would give way to a ~/.netrc

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self._session.close()

    def _sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self.account.token}"
        return request

    def left(self) -> float:
        """Seconds in which a request may still be made."""
        return self._deadline - self.clock()

    def meta(self, type: str, id: UUID) -> dict[str, Any]:
        """A reference to an entity of this account."""
        path = f"context/companysettings/{type}" if type == "pricetype" else f"entity/{type}"
        return {"meta": {"href": f"{self.base_url}/{path}/{id}", "type": type, "mediaType": "application/json"}}

    def get(self, path: str, **params: str | int) -> Any:
        """The value at `path`."""
        return self._repeat(lambda: self._request("GET", path, params))

    def array(self, path: str) -> list[dict[str, Any]]:
        """The value at `path`, which is a bare array of objects."""
        return self._repeat(lambda: objects(path, self._request("GET", path, {})))

    def pages(self, path: str, **params: str | int) -> Iterator[list[dict[str, Any]]]:
        """All rows of a list, page by page, in a stable order.

        Offset paging is no snapshot: raises Retryable when the rows met are not as many as the list
        says it has, because something was created or deleted in between.
        """
        met: set[str] = set()
        offset, size = 0, 1
        while offset < size:
            asked: dict[str, str | int] = {"limit": PAGE, "offset": offset, "order": "id", **params}
            rows, size = self._repeat(lambda asked=asked: _page(path, self._request("GET", path, asked)))  # type: ignore[misc]
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
        is it repeated after an unknown outcome. Never after Slow: who sends less has better hopes.
        """
        if repeatable:
            return self._repeat(lambda: self._request("POST", path, {}, body), but=(Slow,))
        return self._request("POST", path, {}, body)

    def post_all(self, path: str, bodies: Sequence[bytes], *, repeatable: bool) -> list[Any]:
        """Send an array of JSON bodies; the result of each, in their order. Else as `post`."""
        body = b"[" + b",".join(bodies) + b"]"

        def send() -> list[Any]:
            value = self._request("POST", path, {}, body)
            if not isinstance(value, list) or len(value) != len(bodies):
                raise Retryable(f"POST {path}: {len(bodies)} elements were sent, the answer is not as long")
            return value

        return self._repeat(send, but=(Slow,)) if repeatable else send()

    def _repeat(self, send: Callable[[], _T], but: tuple[type[Exception], ...] = ()) -> _T:
        """Again after a Retryable, while there are tries and time left and the breaker lets it."""

        def hopeless(error: Exception) -> bool:
            return isinstance(error, but) or self.left() <= 1 or not self._admitted

        def again(details: Details) -> None:
            self.lost += not isinstance(details.get("exception"), Unreachable)

        attempt = backoff.on_exception(
            backoff.expo,
            Retryable,
            max_tries=self._tries,
            giveup=hopeless,
            on_backoff=again,
            factor=0.5,
            max_value=8,
            logger=None,
        )(send)
        result: _T = attempt()
        return result

    def _request(self, method: str, path: str, params: Mapping[str, str | int], body: Any = None) -> Any:
        """Send; after a 429, which had no effect, have everybody of this principal wait and send again.

        What the limiter and the breaker raise passes through: nothing was sent, nobody else need wait.
        """
        for left in reversed(range(_THROTTLED)):
            self._admit()
            answer = self._send(method, path, params, body)
            try:
                return decipher(answer)
            except Unauthorized:
                self._require_the_token()
                raise
            except RateLimited as error:
                if error.parallel:
                    error.wait = self._limiter.shrink(self.account)
                else:
                    error.wait = self._limiter.pause(self.account, error.wait)
                if not left or not self._admitted or error.wait > min(LONG, self.left()):
                    raise
        raise AssertionError("the last one has returned or raised")

    def _require_the_token(self) -> None:
        """Raises RateLimited when the account has a newer token: the old one's refusal must not park it."""
        if self._current is not None and self._current().token != self.account.token:
            raise RateLimited("the token was refused, but a newer one has come meanwhile", 0.0)

    def _admit(self) -> None:
        """Raises Unreachable when no time is left, and RateLimited while the breaker is open.

        The breaker is asked once, and again after it has opened; if it wants a probe, that goes first.
        """
        if self.left() <= 0:
            raise Unreachable("not sent, the task's time is over")
        if self._admitted:
            return
        if self._breaker is not None and not self._breaker.admit(self.account):
            self._breaker.probed(self.account, self._probe())
        self._admitted = True

    def _probe(self) -> str | None:
        """What is wrong with MoySklad, if anything. What the limiter raises passes through: nothing was sent."""
        try:
            answer = self._send("GET", _PROBE, {"limit": 1})
        except Retryable as error:
            return str(error)
        try:
            decipher(answer)
        except (Retryable, RateLimited) as error:
            return str(error)
        except TaskError:  # it answers; what it says is the business of the request that follows
            pass
        return None

    def _send(self, method: str, path: str, params: Mapping[str, str | int], body: Any = None) -> Answer:
        """One request, from its turn to the end of its answer."""
        if body is None or isinstance(body, bytes):
            data = body
        else:
            data = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        longest = min(LONG, self.left())
        fresh = self.clock() - self._spoke > _KEPT_ALIVE
        with self._limiter.acquire(self.account, fresh=fresh, urgent=self.urgent, longest=longest) as turn:
            began = self.clock()
            emit_request(
                "REQUEST", method=method, path=path, account=self.account.id, **params, bytes=len(data or b"")
            )
            trouble: Retryable | None = None
            try:
                answer = self._exchange(method, path, params, data)
            except (requests.RequestException, HTTPError) as error:
                self._spoke = float("-inf")
                trouble = self._trouble(f"{method} {path}", error, began)
            else:
                self._spoke = self.clock()
                if answer.status != 429:
                    turn.observe(_whole(answer, "x-ratelimit-limit"), _whole(answer, "x-ratelimit-remaining"))
        if trouble:
            self._tell(method, path, type(trouble.__cause__).__name__, began)
            self._judge(method, path, 0, str(trouble))
            raise trouble from None
        self._tell(
            method, path, answer.status, began,
            bytes=len(answer.body), remaining=answer.headers.get("x-ratelimit-remaining", ""),
        )  # fmt: skip
        self._judge(method, path, answer.status, f"{method} {path}: HTTP {answer.status}")
        return answer

    def _exchange(self, method: str, path: str, params: Mapping[str, str | int], data: bytes | None) -> Answer:
        whole = max(0.001, min(self.read_timeout, self.left()))
        self._until = self.clock() + whole
        response = self._session.request(
            method,
            f"{self.base_url}/{path}",
            params=params,
            data=data,
            headers={"Content-Type": "application/json"} if data is not None else None,
            timeout=(min(self._connect_timeout, whole), whole),
            allow_redirects=False,
        )
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status_code, headers, response.content)

    def _trouble(self, what: str, error: Exception, began: float) -> Retryable:
        """What a request without a whole answer comes to: not sent, too slow, or unknown."""
        said = f"{what}: {type(error).__name__} after {self.clock() - began:.1f} s"
        reason = getattr(error.args[0], "reason", None) if error.args else None
        kind = Retryable
        if isinstance(error, requests.ConnectTimeout) or isinstance(reason, NewConnectionError):
            kind = Unreachable
        elif isinstance(error, requests.Timeout) or self.clock() >= self._until:
            kind = Slow
        trouble = kind(said)
        trouble.__cause__ = error
        return trouble

    def _judge(self, method: str, path: str, status: int, reason: str) -> None:
        """Have the breaker know how it ended."""
        if self._breaker is None:
            return
        if 200 <= status < 300:
            self._breaker.succeeded(self.account, method, path)
        elif self._breaker.failed(self.account, method, path, status, reason):
            self._admitted = False

    def _tell(self, method: str, path: str, status: int | str, began: float, **fields: Any) -> None:
        duration = round((self.clock() - began) * 1000)
        emit_request(
            "RESPONSE",
            status=status,
            method=method,
            path=path,
            account=self.account.id,
            ms=duration,
            **fields,
        )


def _whole(answer: Answer, name: str) -> int | None:
    try:
        return int(answer.headers[name])
    except (KeyError, ValueError):
        return None


def objects(path: str, value: Any) -> list[dict[str, Any]]:
    """The value, if it is an array of objects with an id."""
    if not isinstance(value, list) or not all(isinstance(row, dict) and "id" in row for row in value):
        raise Retryable(f"GET {path}: the answer is not an array of objects")
    return value


def _page(path: str, value: Any) -> tuple[list[dict[str, Any]], int]:
    """Rows of a list page, and how many the list has."""
    try:
        return objects(path, value["rows"]), int(value["meta"]["size"])
    except (TypeError, KeyError, ValueError, Retryable):
        raise Retryable(f"GET {path}: the answer is not a list page") from None
