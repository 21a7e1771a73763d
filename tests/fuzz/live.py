"""A whole proxy with a node in memory and in virtual time, and requests that nobody would send in earnest.

Three kinds: what is no HTTP any more; an endpoint with a body, id and query that are broken, from an admin; and an
endpoint as somebody who proved nothing. What is promised: never a 500, never an answer to somebody without credentials,
and no refusal for a reason that the operation's description does not name.
"""

from __future__ import annotations

import json
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio
from tests.fuzz.mutation import VALUES, mutated, mutated_json
from tests.support.config_text import OPS_KEY, strong
from tests.support.memory_cluster import OPS, Cluster
from trio.testing import MockClock

from fairlead.proxy.guard.access import Scope
from fairlead.proxy.ops.contract import ANYWHERE, BODIES, CONTRACT, refusals
from fairlead.proxy.ops.endpoints import ENDPOINTS, Endpoint, Found, find
from fairlead.runtime.http.message import split_target

EXTRA = "[retry]\nmax_attempts = 1\n[observability]\nopen_reads = false\n"
QUERIES = (
    "tenant",
    "status",
    "limit",
    "state",
    "transient",
    "groups",
    "from_seq",
    "apply",
    "x",
    "node",
    "quiet_s",
)
IDS = (
    "alpha",
    "beta",
    "t:step",
    "x",
    "%00",
    "%2e%2e",
    "%F0%9F%92%A9",
    "%ff",
    "a" * 300,
    "dlq-x",
    "*",
    "'",
    "0" * 16,
    "replay",
)
BAD_CREDENTIALS = (
    {}, {"x-ops-key": ""}, {"x-ops-key": strong("somebody else's")}, {"x-ops-key": "flk_" + "0" * 16 + "_" + "A" * 43},
    {"authorization": "Bearer a.b.c"}, {"authorization": f"Basic {OPS_KEY}"}, {"authorization": f"Bearer {OPS_KEY}"},
    {"x-signature": "v2 keyId=" + "0" * 16 + ";ts=1800000000000;nonce=" + "n" * 16 + ";sig=" + "0" * 64},
    {"x-ops-key ": OPS_KEY}, {"x-ops-keys": OPS_KEY}, {"cookie": f"x-ops-key={OPS_KEY}"},
    {"x-forwarded-for": "127.0.0.1"},
    {"x-ops-key": OPS_KEY[:-1]}, {"x-ops-key": OPS_KEY.upper() + " x"}, {"x-original-url": "/health"},
)  # fmt: skip
ANSWER_S = 120.0


class Broken(AssertionError):
    """A promise that was not kept."""


@dataclass(frozen=True)
class Case:
    """What is sent, whole. `honest`: by somebody who may do anything."""

    raw: bytes
    honest: bool
    endpoint: Endpoint | None = None


def made(seed: int, number: int, known: tuple[str, ...] = ()) -> Case:
    """`known`: ids that there are, among those that there are not."""
    rng = random.Random(f"live/{seed}/{number}")
    endpoint = rng.choice(ENDPOINTS)
    body: bytes | None = None
    if endpoint.method in ("POST", "PUT") or rng.random() < 0.05:
        example = BODIES.get(endpoint.body, {})
        if endpoint.body == "Submission":
            example = {**example, "command": "t:step", "args": {"name": "fuzz", "ms": 1}}
        if endpoint.body == "ReplayRequest" and known and rng.random() < 0.5:
            example = {"id": known[-1], "dryRun": rng.random() < 0.5, "force": True}
        body = mutated_json(example, rng)
    target = endpoint.path.replace("{id}", rng.choice((*IDS, *known * 3)))
    if rng.random() < 0.4:
        pairs = [f"{rng.choice(QUERIES)}={_text(rng)}" for _ in range(rng.randint(1, 3))]
        target += "?" + "&".join(pairs)
    kind = rng.randrange(5)
    if kind == 0:
        whole = _request(endpoint.method, target, {"x-ops-key": OPS_KEY}, body)
        return Case(mutated(whole, rng, [whole]), True)
    if kind == 1:
        headers = rng.choice(BAD_CREDENTIALS)
        return Case(_request(endpoint.method, target, headers, body), False, endpoint)
    headers = {"x-ops-key": OPS_KEY}
    if rng.random() < 0.2:
        headers[rng.choice(("idempotency-key", "prefer", "x-reason", "accept", "x-correlation-id"))] = _text(
            rng
        )
    return Case(_request(endpoint.method, target, headers, body), True, endpoint)


def _text(rng: random.Random) -> str:
    value = rng.choice(VALUES)
    text = value if isinstance(value, str) else json.dumps(value)
    return "".join(each if " " < each < "\x7f" and each not in "#&" else "%41" for each in text)[:200]


def _request(method: str, target: str, headers: dict[str, str], body: bytes | None) -> bytes:
    more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    length = "" if body is None else f"content-length: {len(body)}\r\n"
    head = f"{method} {target} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n{more}{length}\r\n"
    return head.encode("latin-1", "replace") + (body or b"")


async def answer_to(cluster: Cluster, raw: bytes) -> bytes:
    stream = await cluster.worlds["client"].connect_tcp("127.0.0.1", OPS)
    found = b""
    with trio.move_on_after(ANSWER_S) as scope:
        try:
            await stream.send_all(raw)
            await stream.send_eof()
            while data := await stream.receive_some(65_536):
                found += data
        except trio.BrokenResourceError:
            pass
    stream.close()
    if scope.cancelled_caught:
        raise Broken("no answer, and the connection stays open")
    return found


def judge(case: Case, answer: bytes) -> None:
    """Raises Broken."""
    if not answer:
        if case.endpoint is not None:
            raise Broken("a whole request was not answered")
        return
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    problem = b"application/problem+json" in head
    said: dict[str, Any] = json.JSONDecoder().raw_decode(body.decode())[0] if problem and body else {}
    if status == 500:
        raise Broken(f"500 {said}")
    if case.endpoint is None:
        return
    if not case.honest and status < 400 and case.endpoint.scope is not Scope.OPEN:
        raise Broken(f"{status} for somebody who proved nothing")
    target = split_target(case.raw.split(b" ", 2)[1])[0]
    found = find(case.endpoint.method, target)
    if not isinstance(found, Found):
        return
    reason = said.get("reason")
    if reason is not None and reason not in {each.value for each in (*refusals(found.endpoint), *ANYWHERE)}:
        raise Broken(f"{found.endpoint.name} refuses with {reason}, which its description does not name")
    if reason is None and status not in {*CONTRACT[found.endpoint.name].types, 302}:
        raise Broken(f"{found.endpoint.name} answers {status}, which its description does not name")


@dataclass(frozen=True)
class LiveFailure:
    seed: int
    number: int
    raw: bytes
    error: str

    def __str__(self) -> str:
        return (
            f"live, seed {self.seed}, case {self.number}: {self.error}\n"
            f"  again: .venv/bin/python -m tests.fuzz --target live --seed {self.seed} --cases {self.number + 1}\n"
            f"  sent: {self.raw[:2_000]!r}"
        )


async def _something(cluster: Cluster) -> tuple[str, ...]:
    """A run that completed, one that did not, and the dead letter of that."""
    done = await cluster.submit("t:step", "done", wait_s=5)
    cluster.script.failing = True
    failed = await cluster.submit("t:once", "failed", wait_s=5)
    cluster.script.failing = False
    return (done["run_id"], failed["run_id"], f"dlq-{failed['run_id']}")


def run(seed: int, count: int) -> LiveFailure | None:
    """So many cases against one proxy. What came before may matter, so a case is had again with those before it."""

    async def main() -> LiveFailure | None:
        with tempfile.TemporaryDirectory() as folder:
            async with trio.open_nursery() as nursery:
                cluster = Cluster(Path(folder), nursery)
                await cluster.start(EXTRA, nodes=("alpha",))
                known = await _something(cluster)
                failure = None
                for number in range(count):
                    case = made(seed, number, known)
                    try:
                        judge(case, await answer_to(cluster, case.raw))
                    except (Broken, ValueError, LookupError) as error:
                        failure = LiveFailure(seed, number, case.raw, repr(error))
                        break
                for stop in cluster.stops.values():
                    stop.set()
                nursery.cancel_scope.cancel()
        return failure

    clock = MockClock(autojump_threshold=0)
    return trio.run(main, clock=clock)
