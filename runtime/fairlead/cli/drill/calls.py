"""The rows that are proven over HTTP, in a tenant of their own.

What could take effect is a dry run, a filter that matches nothing, or a run that is scheduled for later and cancelled
before the drill ends. What is made (two operator keys, the counts of the tenant's limit) is taken away again, also
where a row fails.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from fairlead.cli.drill.plan import Seen, harmless
from fairlead.runtime.request_signing import NONCE_BYTES, SIGNATURE_HEADER, SigningKey, sign
from fairlead.runtime.world import World

REPLAY: Final = "/api/ops/reliability/dlq/replay"
DISPATCH: Final = "/api/dispatch"
DAY_MS: Final = 86_400_000
SCHEDULED_MS: Final = 3_600_000
OVERSIZED_BYTES: Final = 1_048_576
REPLAYS_MAX: Final = 3
NO_SECRET: Final = "no secret to sign with: set DISPATCH_HMAC_SECRET"
NO_COMMAND: Final = (
    "no command to submit: no node offers an idempotent one with simple arguments; say --command and --args"
)


class DrillFailed(Exception):
    """The deployment cannot be asked at all."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """An administrator's, and the secret that requests are signed with."""

    headers: tuple[tuple[str, str], ...]
    signing: SigningKey | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    body: Any
    request_id: str

    @property
    def seen(self) -> Seen:
        problem = self.body if isinstance(self.body, dict) and self.status >= 400 else {}
        return Seen(
            status=self.status, reason=str(problem.get("reason", "")), detail=str(problem.get("detail", ""))[:200],
            request_id=self.request_id,
        )  # fmt: skip


class Calls:
    """Asks one proxy."""

    def __init__(self, world: World, url: str, credentials: Credentials, tenant: str) -> None:
        import httpx

        self._world, self._url, self._tenant = world, url.rstrip("/"), tenant
        self.credentials = credentials
        self._http = httpx.Client(trust_env=False, timeout=20.0)
        self._failures = (httpx.HTTPError,)

    def close(self) -> None:
        self._http.close()

    def ask(
        self, method: str, path: str, body: Any = None, headers: tuple[tuple[str, str], ...] | None = None
    ) -> Answer:
        """One call, as the administrator unless headers say otherwise. Raises DrillFailed."""
        sent = dict(self.credentials.headers if headers is None else headers)
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        if content:
            sent["content-type"] = "application/json"
        try:
            answer = self._http.request(method, self._url + path, content=content, headers=sent)
        except self._failures as error:
            raise DrillFailed(f"{self._url} did not answer ({error})") from error
        try:
            decoded = answer.json()
        except ValueError:
            decoded = {}
        return Answer(answer.status_code, decoded, answer.headers.get("x-correlation-id", ""))

    def signature(self, path: str, body: bytes, late_ms: int = 0) -> tuple[str, str]:
        """The header that signs this body. Only where there is a secret."""
        key = self.credentials.signing
        assert key is not None
        nonce = self._world.random_bytes(NONCE_BYTES).hex()
        return SIGNATURE_HEADER, sign(key, "POST", path, body, self._world.wall_ms() - late_ms, nonce)

    def dry_run(self) -> bytes:
        return json.dumps({"company_id": self._tenant, "max": 1, "dry_run": True}).encode()

    def admin_signed(self, body: bytes, late_ms: int = 0) -> tuple[tuple[str, str], ...]:
        return (*self.credentials.headers, self.signature(REPLAY, body, late_ms))


class HttpDrill:
    """The rows, one after another."""

    def __init__(
        self, calls: Calls, world: World, tenant: str, command: tuple[str, dict[str, Any]] | None
    ) -> None:
        self._calls, self._tenant, self._command = calls, tenant, command
        self._mark = world.random_bytes(6).hex()
        self.found: dict[str, Seen] = {}
        self.left: list[str] = []  # what could not be taken away again
        self._keys: list[str] = []
        self._runs: list[str] = []

    def prove(self) -> None:
        """Every row of `HTTP_ROWS`. Raises DrillFailed where nothing answers."""
        try:
            self._callers()
            self._integrity()
            self._limits()
            self._submissions()
        finally:
            self._tidy()

    def _see(self, name: str, answer: Answer, wrong: str = "") -> None:
        self.found[name] = replace(answer.seen, wrong=wrong)

    def _callers(self) -> None:
        calls, dry = self._calls, self._calls.dry_run()
        self._see("no-credentials", calls.ask("POST", REPLAY, dry, ()))
        forged = (("authorization", f"Bearer {self._mark}.{self._mark}.{self._mark}"),)
        self._see("bad-token", calls.ask("POST", REPLAY, dry, forged))
        viewer, made = self._key({"role": "viewer"})
        self._see("role-guard", calls.ask("POST", REPLAY, dry, viewer) if viewer else made)
        bound, made = self._key({"role": "operator", "tenant": self._tenant})
        other = {"company_id": f"{self._tenant[:40]}-other", "max": 1, "dry_run": True}
        self._see("tenant-guard", calls.ask("POST", REPLAY, other, bound) if bound else made)

    def _key(self, asked: dict[str, Any]) -> tuple[tuple[tuple[str, str], ...] | None, Answer]:
        """An operator key for a quarter of an hour, or the answer that there is none."""
        answer = self._calls.ask(
            "POST", "/api/operator-keys", {**asked, "note": f"drill {self._mark}", "valid_s": 900}
        )
        if answer.status != 201:
            return None, answer
        self._keys.append(answer.body["id"])
        return (("x-ops-key", answer.body["key"]),), answer

    def _integrity(self) -> None:
        calls, dry = self._calls, self._calls.dry_run()
        if calls.credentials.signing is None:
            return
        other = calls.signature(REPLAY, dry + b" ")
        self._see("bad-signature", calls.ask("POST", REPLAY, dry, (*calls.credentials.headers, other)))
        self._see("stale-signature", calls.ask("POST", REPLAY, dry, calls.admin_signed(dry, DAY_MS)))
        signed = calls.admin_signed(dry)
        self._see("good-signature", calls.ask("POST", REPLAY, dry, signed))
        self._see("nonce-replay", calls.ask("POST", REPLAY, dry, signed))

    def _limits(self) -> None:
        calls = self._calls
        too_many = {"company_id": self._tenant, "max": 1_000_000, "dry_run": True}
        self._see("oversized-replay", calls.ask("POST", REPLAY, too_many))
        nothing = {"company_id": self._tenant, "max": 1, "fingerprint": f"drill-{self._mark}"}
        self._forget_rates()
        answers = [calls.ask("POST", REPLAY, nothing) for _ in range(REPLAYS_MAX + 1)]
        early = [each for each in answers[:REPLAYS_MAX] if each.status == 429]
        self._see("fourth-replay", answers[-1], "limited before the fourth" if early else "")

    def _submissions(self) -> None:
        calls = self._calls
        if self._command is None:
            listed = calls.ask("GET", "/api/commands")
            self._command = harmless(listed.body.get("commands", ())) if listed.status == 200 else None
        names = (
            "unsigned-submits", "bad-signature-submits", "good-submission", "nonce-replay-submits", "duplicate-key",
            "key-reused", "oversized-body",
        )  # fmt: skip
        if calls.credentials.signing is None or self._command is None:
            wrong = NO_SECRET if calls.credentials.signing is None else NO_COMMAND
            self.found.update({name: Seen(where="-", wrong=wrong) for name in names})
            return
        command, args = self._command
        asked = {
            "command": command, "args": args, "target": "any", "tenant": self._tenant, "delay_ms": SCHEDULED_MS,
            "idempotency_key": f"drill-{self._mark}",
        }  # fmt: skip
        body = json.dumps(asked).encode()
        again = json.dumps({**asked, "idempotency_key": f"drill-{self._mark}-again"}).encode()
        self._submit("bad-signature-submits", again, calls.signature(DISPATCH, body))
        self._submit("unsigned-submits", again, *calls.credentials.headers)
        signed = calls.signature(DISPATCH, body)
        first = self._submit("good-submission", body, signed)
        self._submit("nonce-replay-submits", body, signed)
        second = self._submit("duplicate-key", body, calls.signature(DISPATCH, body))
        run_id = first.body.get("run_id")
        if second.status == 202 and second.body.get("run_id") != run_id:
            self._see("duplicate-key", second, "the duplicate was accepted as a run of its own")
        reused = json.dumps({**asked, "delay_ms": SCHEDULED_MS * 2}).encode()
        self._submit("key-reused", reused, calls.signature(DISPATCH, reused))
        large = json.dumps({
            "command": command, "target": "any", "tenant": self._tenant, "delay_ms": SCHEDULED_MS,
            "args": {**args, "drill": "x" * OVERSIZED_BYTES},
        }).encode()  # fmt: skip
        self._submit("oversized-body", large, calls.signature(DISPATCH, large))

    def _submit(self, name: str, body: bytes, *headers: tuple[str, str]) -> Answer:
        answer = self._calls.ask("POST", DISPATCH, body, headers)
        self._see(name, answer)
        if answer.status in (200, 202) and answer.body.get("run_id"):
            self._runs.append(answer.body["run_id"])
        return answer

    # -- after it

    def _forget_rates(self) -> None:
        self._calls.ask("POST", "/api/controls/rate-limits/clear", {"prefix": f"replay:{self._tenant}:"})

    def _tidy(self) -> None:
        """Take away what was made; what stays is named."""

        def cleared(path: str, body: Any) -> None:
            try:
                answer = self._calls.ask("POST", path, body)
            except DrillFailed as error:
                self.left.append(f"{path}: {error}")
            else:
                if answer.status >= 400:
                    self.left.append(f"{path}: {answer.status} {answer.seen.reason}")

        cleared("/api/controls/rate-limits/clear", {"prefix": f"replay:{self._tenant}:"})
        for run_id in dict.fromkeys(self._runs):
            cleared(f"/api/runs/{run_id}/cancel", {})
        for key_id in self._keys:
            cleared(f"/api/operator-keys/{key_id}/revoke", {})


def guard_down(calls: Calls) -> Callable[[], Seen]:
    """A signed call to a proxy whose store cannot write: nobody can tell whether it is a replay."""

    def ask() -> Seen:
        body = calls.dry_run()
        return calls.ask("POST", REPLAY, body, calls.admin_signed(body)).seen

    return ask
