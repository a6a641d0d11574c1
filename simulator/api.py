"""The API side: who may ask, how fast, what goes wrong on order, and what is written down."""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import math
import time

from .account import Account
from .answer import Answer, Call, Receive, Scope, Send, cut
from .errors import ApiError, Empty
from .faults import CUT, Fault
from .ledger import Entry
from .limits import PARALLEL_PER_ACCOUNT, PARALLEL_PER_PRINCIPAL, PERIOD, UNITS, Principal
from .render import dumps
from .routes import route
from .world import World

log = logging.getLogger("simulator")

MAX_HEAD = 8 * 1024  # headers with the URL (md/_restrictions.md)
INSTEAD = ("status", "html", "redirect")
"""Kinds of fault that answer in place of the API."""
CODES = {
    400: 2001,
    401: 1056,
    403: 1061,
    404: 1002,
    405: 1039,
    409: 1028,
    412: 3000,
    413: 1044,
    415: 1037,
    429: 1049,
    503: 1074,
    504: 1088,
}
"""The vendor's code in an ordered answer of that status, if the order names none."""
ACCEPTED = frozenset({"*/*", "application/json", "application/json;charset=utf-8"})


class Api:
    """The ASGI application below `/api/remap/1.2`."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request from admission to its line in the ledger."""
        call = Call.from_scope(scope)
        exchange = _Exchange(self.world, call)
        try:
            answer = await exchange.answer(receive)
            fault = exchange.fault
            if fault:
                scope.setdefault("state", {})["fault"] = fault.kind  # for middleware that judges answers
            if fault and fault.kind in CUT:
                exchange.finish(0)
                cut(scope)
                if fault.kind == "late":
                    await exchange.do_late(fault)
            elif fault and fault.kind == "truncate":
                exchange.finish(answer.status, answer.items)
                await answer.send_half(send, call.base)
                cut(scope)
            elif fault and fault.kind == "drip":
                exchange.finish(answer.status, answer.items)
                await answer.drip(send, receive, call.base, fault.delay_ms / 1000)
            else:
                answer.headers = {**exchange.finish(answer.status, answer.items), **answer.headers}
                await answer.send(send, call.base)
        finally:
            exchange.release()


class _Exchange:
    """One request on its way: what it was granted, what it suffered, when it began."""

    def __init__(self, world: World, call: Call) -> None:
        self.world = world
        self.call = call
        self.now = world.clock()
        self.begun = time.perf_counter()
        self.account: Account | None = None
        self.principal: Principal | None = None
        self.fault: Fault | None = None
        self.units = 0
        self.applied = False
        self.running = False
        self.limit_headers: dict[str, str] = {}

    async def answer(self, receive: Receive) -> Answer:
        """Admit, delay, do; every refusal becomes an answer."""
        try:
            account, _ = self.admit()
        except (ApiError, Empty) as refusal:
            await self.call.read(receive)
            return Answer.refusal(refusal)
        await self.call.read(receive)
        fault = self.fault = self.world.faults.pick(self.call.method, self.call.path, account.id)
        if fault and (early := await self.suffer(fault)):
            return early
        try:
            await _sleep(self.world.latency_ms)
            self.check_content()
            answer = self.do(account)
            await _sleep(self.world.item_ms * answer.items)
        except (ApiError, Empty) as refusal:
            answer = Answer.refusal(refusal)
        except Exception:
            log.exception("%s %s broke the simulator", self.call.method, self.call.path)
            answer = Answer.refusal(ApiError(1999))
        return _spoiled(answer, fault, self.call)

    # --- admission ---

    def admit(self) -> tuple[Account, Principal]:
        """Headers, identity, kill-switch, parallel slots, units: in this order, each a refusal of its own."""
        if self.call.head_size > MAX_HEAD:
            raise Empty(414)
        if "gzip" not in self.call.headers.get("accept-encoding", ""):
            raise Empty(415)
        principal = self.principal = self.authenticate()
        account = self.account = self.world.accounts[principal.account]
        if principal.disabled:
            raise ApiError(1061)
        self.take_slot(account, principal)
        self.take_units(account, principal)
        return account, principal

    def authenticate(self) -> Principal:
        """The principal behind `Authorization`, or error 1056."""
        scheme, _, value = self.call.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            found = self.world.tokens.get(value.strip())
        elif scheme.lower() == "basic":
            found = self.by_password(value.strip())
        else:
            raise ApiError(1056, "не указаны данные для аутентификации")
        if found is None:
            raise ApiError(1056, "неправильный пароль или имя пользователя или ключ авторизации")
        return found

    def by_password(self, value: str) -> Principal | None:
        """The principal of a login, if the password is right."""
        try:
            login, _, password = base64.b64decode(value).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        principal = self.world.logins.get(login)
        if principal and self.world.accounts[principal.account].password == password:
            return principal
        return None

    def take_slot(self, account: Account, principal: Principal) -> None:
        """One of the parallel slots, or error 1073, which comes without X-Lognex-Retry-After."""
        together = sum(one.running for one in account.principals.values())
        if principal.running >= PARALLEL_PER_PRINCIPAL or together >= PARALLEL_PER_ACCOUNT:
            self.limit_headers = {"x-lognex-reset": "0"}
            raise ApiError(1073)
        principal.running += 1
        self.running = True

    def take_units(self, account: Account, principal: Principal) -> None:
        """Units of the window, or error 1049; a refused request costs none."""
        window = principal.window
        self.world.ledger.neighbour(account.id, principal.admit_neighbour(self.now))
        if not window.take(self.now, principal.weight):
            wait = str(math.ceil(window.wait(self.now, principal.weight) * 1000))
            self.limit_headers = {"x-lognex-retry-after": wait, "x-lognex-reset": wait}
            self.release()
            raise ApiError(1049)
        self.units = principal.weight
        parallel = principal.running
        self.world.ledger.granted(account.id, window.used, parallel)
        self.limit_headers = self.headers(account, principal)

    def headers(self, account: Account, principal: Principal) -> dict[str, str]:
        """What a granted request learns (md/_general.md); in requests unless the account says units."""
        each = 1 if account.rate_headers_in_units else principal.weight
        window = principal.window
        return {
            "x-ratelimit-limit": str(UNITS // each),
            "x-ratelimit-remaining": str((UNITS - window.used) // each),
            "x-lognex-retry-timeinterval": str(int(PERIOD * 1000)),
            "x-lognex-reset": str(math.ceil(window.reset(self.now) * 1000)),
            "x-lognex-retry-after": str(math.ceil(window.wait(self.now, principal.weight) * 1000)),
        }

    # --- the work ---

    def check_content(self) -> None:
        """Accept, body size and Content-Type (errors 1062, 1044, 1037)."""
        accept = self.call.headers.get("accept", "*/*").replace(" ", "").lower()
        if accept not in ACCEPTED:
            raise ApiError(1062)
        if self.call.too_large:
            raise ApiError(1044)
        kind = self.call.headers.get("content-type", "").split(";")[0].strip().lower()
        if self.call.body and kind != "application/json":
            raise ApiError(1037)

    def do(self, account: Account) -> Answer:
        """The effect itself; a write is applied once this has returned."""
        if self.call.path == "/security/token":
            return self.new_token(account)
        try:
            answer = route(account, self.call, self.fault)
        except RecursionError:
            raise ApiError(2006) from None
        self.applied = answer.applied
        return answer

    def new_token(self, account: Account) -> Answer:
        """A token for the login that asks (md/_general.md "Получение нового токена")."""
        principal = self.principal
        if self.call.method != "POST":
            raise ApiError(1039, self.call.method)
        if principal is None or self.world.logins.get(principal.name) is not principal:
            raise ApiError(1056, "нужны логин и пароль")
        return Answer.of({"access_token": self.world.issue_token(account, principal.name)}, status=201)

    async def suffer(self, fault: Fault) -> Answer | None:
        """What a fault does before the effect; an answer if the request ends there."""
        if fault.kind not in ("late", "drip") and (fault.kind != "status" or fault.status != 429):
            await _sleep(fault.delay_ms)
        if fault.kind in ("drop_before", "late") or (fault.kind == "timeout" and not fault.effect):
            return Answer(500)
        if fault.code == 1073:
            self.limit_headers = {"x-lognex-reset": "0"}
        if fault.kind in INSTEAD and not fault.effect:
            await _sleep(self.world.latency_ms)
            return _wrong_answer(fault, self.call)
        return None

    async def do_late(self, fault: Fault) -> None:
        """The effect of a request whose client has been cut off, when its time has come."""
        await _sleep(fault.delay_ms)
        if self.account is None:
            return
        try:
            self.check_content()
            self.do(self.account)
        except (ApiError, Empty):
            return
        if self.applied:
            self.world.ledger.applied_late(self.account.id, self.call.method, self.call.path)

    # --- the end ---

    def finish(self, status: int, items: int = 0) -> dict[str, str]:
        """Write the request down, judge its principal, and give the limit headers its answer carries."""
        account = self.account.id if self.account else None
        name = self.principal.name if self.principal else None
        call = self.call
        entry = Entry(
            t=self.now,
            account=account,
            principal=name,
            method=call.method,
            path=call.path,
            query=call.query,
            status=status,
            units=self.units,
            items=items,
            duration_ms=round((time.perf_counter() - self.begun) * 1000, 3),
            applied=self.applied,
        )
        self.world.ledger.add(entry)
        if account and name and self.principal:
            reason = self.principal.judge(self.now, call.method, call.path, status)
            if reason:
                self.world.ledger.switched_off(self.now, account, name, reason)
        return self.limit_headers

    def release(self) -> None:
        """Give the parallel slot back."""
        if self.running and self.principal:
            self.running = False
            self.principal.running -= 1


async def _sleep(milliseconds: float) -> None:
    """Be slow on purpose; the parallel slot stays taken meanwhile."""
    if milliseconds > 0:
        await asyncio.sleep(milliseconds / 1000)


def _wrong_answer(fault: Fault, call: Call) -> Answer:
    """The answer of a fault that replaces the real one."""
    if fault.kind == "html":
        text = "<html><head><title>502 Bad Gateway</title></head><body>502 Bad Gateway</body></html>"
        return Answer(fault.status or 502, text.encode(), "text/html;charset=UTF-8")
    if fault.kind == "redirect":  # an id of the web interface is answered so, with the API's own: md/_general.md
        return Answer(fault.status or 308, headers={"location": f"{call.base}{call.path}"})
    status = fault.status or 503
    error = dumps(ApiError(fault.code or CODES.get(status, 1999), "", "", "").body())
    if status == 429 and fault.code != 1073:
        wait = str(int(fault.delay_ms) or 1000)
        return Answer(429, error, headers={"x-lognex-retry-after": wait, "x-lognex-reset": wait})
    return Answer(status, error)


def _spoiled(answer: Answer, fault: Fault | None, call: Call) -> Answer:
    """What a fault does to an answer after the effect."""
    if fault and fault.kind in INSTEAD:
        return _wrong_answer(fault, call)
    if fault and fault.kind == "wrong_json":
        return Answer(200, b'{"rows": [{"id": ', items=answer.items)
    return answer
