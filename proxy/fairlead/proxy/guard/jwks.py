"""The keys of a token's issuer, fetched over HTTPS and kept: the I/O beside `key_set` and `tokens`.

Invariants: calls wait for the network only where nothing was ever fetched, or where a token names a key that is not
known; that causes one fetch within `UNKNOWN_KEY_EVERY_S`, however many tokens name however many keys. A set that cannot
be fetched, read or used leaves the last good one in place, for `stale_max_s`; then no token of the issuer is believed
(JWKS_UNAVAILABLE), for who may sign is not known any more. Every fetch has a deadline, and one is under way at most.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import trio

from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.guard.key_set import KeySet, read_key_set
from fairlead.proxy.guard.tokens import TokenKey
from fairlead.runtime.observer import Observer
from fairlead.runtime.posting import Get, OutboundFailed

FETCH_TIMEOUT_S: Final = 5.0
UNKNOWN_KEY_EVERY_S: Final = 10.0
_RETRY_FIRST_S: Final = 1.0
_RETRY_LAST_S: Final = 10.0


class Jwks:
    """Keeps an issuer's keys. `run` it beside what asks."""

    def __init__(
        self,
        observer: Observer,
        get: Get,
        url: str,
        algorithms: Collection[str],
        refresh_s: float,
        stale_max_s: float,
    ) -> None:
        self._observer, self._get, self._url, self.algorithms = observer, get, url, algorithms
        self._refresh_s, self._stale_max_s = refresh_s, stale_max_s
        self._held: KeySet | None = None
        self._good_at_s = 0.0
        self._asked_at_s = -UNKNOWN_KEY_EVERY_S  # when an unknown key last caused a fetch
        self._failure = ""
        self._fetching = True  # the first one begins with `run`
        self._wanted = trio.Event()
        self._done = trio.Event()  # set after the next fetch, whatever came of it
        self._count = observer.metrics.counter(
            "jwks_fetches_total", "Fetches of the issuer's keys.", ("result",)
        )

    async def run(self) -> None:
        """Fetch, and fetch again, until cancelled."""
        retry_s = _RETRY_FIRST_S
        while True:
            self._wanted = trio.Event()
            self._fetching = True
            good = await self._fetch()
            self._fetching = False
            self._done.set()
            self._done = trio.Event()
            pause_s = self._refresh_s if good else min(retry_s, self._refresh_s)
            retry_s = _RETRY_FIRST_S if good else min(retry_s * 2, _RETRY_LAST_S)
            with trio.move_on_after(pause_s):
                await self._wanted.wait()

    async def key(self, algorithm: str, key_id: str) -> TokenKey:
        """The issuer's key. Raises Refused: JWT_KEY_UNKNOWN, or JWKS_UNAVAILABLE where nobody can say."""
        held = self._usable()
        key = held.find(algorithm, key_id) if held else None
        if key is None and self._is_fetching(because_unknown=held is not None):
            with trio.move_on_after(FETCH_TIMEOUT_S + 1.0):
                await self._done.wait()
            held = self._usable()
            key = held.find(algorithm, key_id) if held else None
        if held is None:
            detail = self._failure or "they were not fetched yet"
            raise Refused(Reason.JWKS_UNAVAILABLE, detail, retry_after_s=_RETRY_FIRST_S)
        if key is None:
            raise Refused(Reason.JWT_KEY_UNKNOWN, f"kid {key_id[:64]!r} with {algorithm}")
        return key

    def _is_fetching(self, *, because_unknown: bool) -> bool:
        """Whether a fetch is under way that may bring a key. An unknown one begins it, not too often."""
        now_s = trio.current_time()
        if because_unknown and not self._fetching and now_s - self._asked_at_s >= UNKNOWN_KEY_EVERY_S:
            self._asked_at_s, self._fetching = now_s, True
            self._wanted.set()
        return self._fetching

    def status(self) -> dict[str, Any]:
        """For /status: what is held, since when, and what went wrong last."""
        held = self._held
        return {
            "keys": [{"kid": each.key_id, "alg": each.algorithm} for each in held.keys] if held else [],
            "left_out": list(held.left_out) if held else [],
            "age_s": round(trio.current_time() - self._good_at_s) if held else None,
            "failure": self._failure or None,
        }

    def _usable(self) -> KeySet | None:
        is_good = trio.current_time() - self._good_at_s <= self._stale_max_s
        return self._held if is_good else None

    async def _fetch(self) -> bool:
        try:
            answer = await self._get(self._url, [("accept", "application/json")], FETCH_TIMEOUT_S)
        except (OutboundFailed, Refused) as error:
            return self._failed(str(error))
        if answer.status != 200:
            return self._failed(f"it answered {answer.status}")
        found = read_key_set(answer.body, self.algorithms)
        if isinstance(found, str):
            return self._failed(found)
        if self._held is None or found.left_out != self._held.left_out:
            for why in found.left_out:
                self._observer.log.warning("jwks_key_left_out", url=self._url, why=why)
        self._held, self._good_at_s, self._failure = found, trio.current_time(), ""
        self._count.inc("good")
        return True

    def _failed(self, why: str) -> bool:
        self._failure = f"{self._url}: {why}"
        self._count.inc("failed")
        self._observer.log.warning("jwks_not_fetched", detail=self._failure, kept=self._held is not None)
        return False
