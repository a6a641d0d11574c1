"""Everything the simulator holds at one moment: accounts, tokens, ledger, faults, speed."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable
from typing import Any

from .account import Account
from .faults import Faults
from .ledger import Ledger
from .limits import Principal
from .render import Json

Clock = Callable[[], float]


class World:
    """The state behind both the API and the control side; `clock` gives seconds since the epoch."""

    def __init__(self, clock: Clock = time.time, latency_ms: float = 0, item_ms: float = 0) -> None:
        self.clock = clock
        self.latency_ms = latency_ms
        self.item_ms = item_ms
        self.ledger = Ledger()
        self.reset()

    def reset(self) -> None:
        """Forget every account, fault and count; speed stays as it is."""
        self.random = random.Random("world")
        self.accounts: dict[str, Account] = {}
        self.tokens: dict[str, Principal] = {}
        self.logins: dict[str, Principal] = {}
        self.faults = Faults()
        self.ledger.reset()

    def new_account(self, order: Json) -> Account:
        """An account with its standard data, tokens and login."""
        key = str(order.get("id") or uuid.UUID(int=self.random.getrandbits(128), version=4))
        name = str(order.get("name") or key)
        options: dict[str, Any] = {option: order.get(option) for option in ("login", "password", "settings")}
        account = Account(key, name, self.clock, **options)
        self.accounts[key] = account
        for token in order.get("tokens") or ():
            self.add_token(account, str(token["token"]), int(token.get("weight", 1)))
        if account.login:
            principal = Principal(account.login, key, int(order.get("loginWeight", 3)))
            self.logins[account.login] = principal
            account.principals[account.login] = principal
        return account

    def add_token(self, account: Account, token: str, weight: int) -> Principal:
        """Let a token into an account; a known token only changes its weight."""
        principal = self.tokens.get(token)
        if principal is None or principal.account != account.id:
            principal = Principal(token, account.id, weight)
            self.tokens[token] = principal
            account.principals[token] = principal
        principal.weight = weight
        return principal

    def revoke(self, account: Account, token: str) -> None:
        """The token opens nothing any more."""
        self.tokens.pop(token, None)
        account.principals.pop(token, None)

    def issue_token(self, account: Account, login: str) -> str:
        """A new token for a user; it revokes all earlier ones of that user (md/_general.md)."""
        mine = f"user:{login}:"
        for token, principal in list(account.principals.items()):
            if principal.name.startswith(mine):
                self.revoke(account, token)
        token = f"{self.random.getrandbits(160):040x}"
        self.add_token(account, token, self.logins[login].weight).name = mine + token[:6]
        return token
