"""Asks a running deployment on behalf of a gate: one call at a time, each with a deadline, the whole within one too.

Beside `ctl/calling`, which tells an operator what went wrong; here a refusal is an answer like any other, because what
is refused is what gates look at. Invariant: no call is made after the whole's deadline.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fairlead.runtime.request_signing import NONCE_BYTES, SIGNATURE_HEADER, SigningKey, sign
from fairlead.runtime.world import World

CALL_TIMEOUT_S: Final = 15.0
WHOLE_TIMEOUT_S: Final = 120.0


class NotAnswered(Exception):
    """Nobody answered, or not in time."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back. `reason`: what a refusal names."""

    status: int
    body: Any = None
    text: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def reason(self) -> str:
        return (
            str(self.body.get("reason") or "") if isinstance(self.body, dict) and self.status >= 400 else ""
        )

    def __str__(self) -> str:
        return f"{self.status} {self.reason}".strip()


class Asker:
    """One deployment's address, with an operator key where there is one. Close it."""

    def __init__(
        self,
        world: World,
        url: str,
        key: str = "",
        signing: SigningKey | None = None,
        *,
        call_timeout_s: float = CALL_TIMEOUT_S,
        whole_timeout_s: float = WHOLE_TIMEOUT_S,
    ) -> None:
        import httpx

        self._world, self.url, self._key, self.signing = world, url.rstrip("/"), key, signing
        self._call_timeout_s = call_timeout_s
        self._ends_at_ms = world.wall_ms() + round(whole_timeout_s * 1000)
        self._http = httpx.Client(trust_env=False)
        self._failures = (httpx.HTTPError, httpx.InvalidURL)

    def close(self) -> None:
        self._http.close()

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """One call. `key`: another one than usual, empty for none. Raises NotAnswered."""
        left_s = (self._ends_at_ms - self._world.wall_ms()) / 1000
        if left_s <= 0:
            raise NotAnswered("not asked: the time for all of it is over")
        sent = {"accept": "application/json", **(headers or {})}
        used = self._key if key is None else key
        if used:
            sent["x-ops-key"] = used
        content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        if content:
            sent["content-type"] = "application/json"
        try:
            answer = self._http.request(
                method,
                self.url + path,
                content=content,
                headers=sent,
                timeout=min(self._call_timeout_s, left_s),
            )
        except self._failures as error:
            raise NotAnswered(f"{self.url} did not answer: {str(error) or type(error).__name__}") from error
        try:
            decoded = answer.json()
        except ValueError:
            decoded = None
        return Reply(answer.status_code, decoded, answer.text, answer.headers)

    def signature(self, method: str, target: str, body: bytes) -> dict[str, str]:
        """The header that signs this. Only where there is a secret."""
        assert self.signing is not None, "asked only where there is one"
        nonce = self._world.random_bytes(NONCE_BYTES).hex()
        return {SIGNATURE_HEADER: sign(self.signing, method, target, body, self._world.wall_ms(), nonce)}

    def submit(self, wanted: Mapping[str, Any], *, wait_s: int = 0, key: str | None = None) -> Reply:
        """POST /api/dispatch, signed where there is a secret."""
        body = json.dumps(wanted).encode()
        headers = self.signature("POST", "/api/dispatch", body) if self.signing is not None else {}
        if wait_s:
            headers["prefer"] = f"wait={wait_s}"
        return self.ask("POST", "/api/dispatch", body, key=key, headers=headers)
