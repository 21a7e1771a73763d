"""`fairlead smoke`: a little load with the thresholds of runbook 001, and an exit status that says whether they held.

Requests are due at fixed moments (`open_loop`). Submissions are answered when they are durable (202); afterwards their
runs are looked up: how each ended, and how long it had been due before it was claimed for a node. The outbox's lag is
the longer of that and what the proxy measured itself, of every delivery: a run that no node had counts as well.
Bounded: `--duration` times `--rate` requests, and the time to settle. Progress goes to the standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import trio

from fairlead.cli import findings, open_loop
from fairlead.cli.asking import Asker, NotAnswered
from fairlead.cli.ctl.calling import DEFAULT_URL
from fairlead.cli.findings import ERROR, OK, WARNING, Found
from fairlead.cli.open_loop import Answered, Load, average, percentile
from fairlead.cli.prod_gate import signing_key
from fairlead.cli.sign import NotSigned
from fairlead.runtime.request_signing import NONCE_BYTES, SIGNATURE_HEADER, SigningKey, sign
from fairlead.runtime.world import RealWorld, World

DISPATCH: Final = "/api/dispatch"
TIMEOUT_S: Final = 10.0
LOOKED_UP_MAX: Final = 500
LOOKED_UP_AT_ONCE: Final = 8
SAMPLES_MIN: Final = 20
LATE_MS_MAX: Final = 250.0
LAG_METRIC: Final = "fairlead_outbox_lag_seconds"
ENDED: Final = ("COMPLETED", "FAILED", "CANCELLED", "EXPIRED")


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Runbook 001's. What is measured has to stay below, success above."""

    failed_percent: float = 2.0
    p95_ms: float = 2_500.0
    lag_p95_ms: float = 5_000.0
    lag_avg_ms: float = 2_000.0
    success_percent: float = 98.0
    dead_letters: int = 10  # more than before


@dataclass(frozen=True, slots=True)
class Wanted:
    """What load, on what."""

    url: str
    ops_key: str = field(repr=False)
    signing: SigningKey | None = field(repr=False)
    rate: float = 20.0
    duration_s: float = 15.0
    command: str = "demo:echo"
    args: Mapping[str, Any] = field(default_factory=dict)
    tenant: str = "default"
    outbox: bool = True
    dlq: bool = True
    agents: bool = True
    settle_s: float = 15.0

    @property
    def requests(self) -> int:
        return max(1, min(open_loop.REQUESTS_MAX, round(self.rate * self.duration_s)))

    @property
    def submits(self) -> bool:
        return self.outbox or self.agents


@dataclass(slots=True)
class Figures:
    """What was measured."""

    requests: int = 0
    failed: int = 0
    p50_ms: float = 0.0
    p95_ms: float = 0.0
    max_ms: float = 0.0
    late_p95_ms: float = 0.0  # of the generator itself
    failures: dict[str, int] = field(default_factory=dict)
    accepted: int = 0
    looked_up: int = 0
    ended: dict[str, int] = field(default_factory=dict)
    lag_p95_ms: float = 0.0
    lag_avg_ms: float = 0.0
    lags: int = 0
    not_delivered: int = 0  # to any node, in all the time there was
    dead_letters_before: int = 0
    dead_letters: int = 0
    nodes_out: list[str] = field(default_factory=list)
    replay_answered: str = ""

    @property
    def failed_percent(self) -> float:
        return 100 * self.failed / self.requests if self.requests else 100.0

    @property
    def success_percent(self) -> float:
        return 100 * self.ended.get("COMPLETED", 0) / self.looked_up if self.looked_up else 0.0


class CannotRun(Exception):
    """Why there is nothing to measure."""


def run(options: argparse.Namespace) -> int:
    """`fairlead smoke`."""
    gate = findings.Gate("smoke", options)
    try:
        wanted = wanted_of(options)
        figures = measure(wanted)
    except (CannotRun, NotAnswered, NotSigned, OSError) as error:
        return gate.could_not_run(str(error))
    found = list(judged(figures, wanted))
    return gate.end(found, url=wanted.url, figures=asdict(figures), thresholds=asdict(Thresholds()))


def wanted_of(options: argparse.Namespace) -> Wanted:
    """From the command line. Without --outbox, --dlq or --agents (or TEST_OUTBOX=true...): all three."""
    parts = {
        name: getattr(options, name) or os.environ.get(f"TEST_{name.upper()}", "").lower() == "true"
        for name in ("outbox", "dlq", "agents")
    }
    if not any(parts.values()):
        parts = dict.fromkeys(parts, True)
    try:
        args = json.loads(options.args)
    except ValueError as error:
        raise CannotRun(f"--args is no JSON: {error}") from error
    return Wanted(
        options.url or os.environ.get("BASE_URL") or os.environ.get("FAIRLEAD_URL", DEFAULT_URL), options.ops_key,
        signing_key(options.secret_file), options.rate, options.duration, options.command, args, options.tenant,
        settle_s=options.settle, **parts,
    )  # fmt: skip


# -- measuring


def measure(wanted: Wanted) -> Figures:
    """Everything, in bounded time. Raises CannotRun, NotAnswered."""
    world, figures = RealWorld(), Figures()
    asker = Asker(
        world, wanted.url, wanted.ops_key, whole_timeout_s=wanted.duration_s + wanted.settle_s + 60,
        call_timeout_s=TIMEOUT_S,
    )  # fmt: skip
    try:
        before = _status(asker)
        if wanted.submits:
            _check_command(asker, wanted.command)
        figures.dead_letters_before = _queued(before)
        lag_before = _lag_totals(asker)
        load = Load(wanted.requests)
        trio.run(_drive, world, wanted, load, figures)
        _summed(load, figures)
        if wanted.dlq:
            body = {"company_id": wanted.tenant, "max": 1, "dry_run": True}
            figures.replay_answered = str(asker.ask("POST", "/api/ops/reliability/dlq/replay", body))
        after = _status(asker)
        figures.dead_letters = _queued(after)
        figures.lag_p95_ms = max(figures.lag_p95_ms, after["dispatch"]["lag"]["p95_ms"] or 0.0)
        seconds, count = (now - then for now, then in zip(_lag_totals(asker), lag_before, strict=True))
        if count > 0:
            figures.lag_avg_ms = max(figures.lag_avg_ms, 1000 * seconds / count)
        figures.nodes_out = [
            each["id"] for each in after["nodes"] if each["state"] not in ("ONLINE", "DRAINING")
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise CannotRun(f"{wanted.url} answered in a shape that is not known here ({error!r})") from error
    finally:
        asker.close()
    return figures


def _status(asker: Asker) -> dict[str, Any]:
    answer = asker.ask("GET", "/status")
    if answer.status != 200:
        raise CannotRun(f"{asker.url}/status answered {answer}: give an operator's key (FAIRLEAD_OPS_KEY)")
    found: dict[str, Any] = answer.body
    return found


def _queued(status: Mapping[str, Any]) -> int:
    return int(status["dispatch"]["dead_letters"].get("queued", 0))


def _lag_totals(asker: Asker) -> tuple[float, float]:
    """The proxy's own: seconds of lag, and of how many deliveries, since its start."""
    answer = asker.ask("GET", "/metrics")
    if answer.status != 200:
        raise CannotRun(f"{asker.url}/metrics answered {answer}")
    samples = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if line.startswith(LAG_METRIC))
    return float(samples[f"{LAG_METRIC}_sum"]), float(samples[f"{LAG_METRIC}_count"])


def _check_command(asker: Asker, command: str) -> None:
    listed = asker.ask("GET", "/api/commands")
    if listed.status != 200:
        raise CannotRun(f"/api/commands answered {listed}")
    if command not in [each["name"] for each in listed.body["commands"] if each["nodes"]]:
        raise CannotRun(f"no node offers {command}: name a harmless one with --command and --args")


async def _drive(world: World, wanted: Wanted, load: Load, figures: Figures) -> None:
    import httpx

    limits = httpx.Limits(
        max_connections=open_loop.UNDER_WAY_MAX, max_keepalive_connections=open_loop.UNDER_WAY_MAX
    )
    headers = {"accept": "application/json", **({"x-ops-key": wanted.ops_key} if wanted.ops_key else {})}
    mark = world.random_bytes(6).hex()
    async with httpx.AsyncClient(
        base_url=wanted.url.rstrip("/"), timeout=TIMEOUT_S, trust_env=False, limits=limits, headers=headers
    ) as client:

        async def request(index: int) -> Answered:
            try:
                if not wanted.submits or index % 4 == 3:
                    answer = await client.get("/health/live")
                else:
                    body = {
                        "command": wanted.command, "args": wanted.args, "target": "any", "tenant": wanted.tenant,
                        "idempotency_key": f"smoke-{mark}-{index}",
                    }  # fmt: skip
                    answer = await _submit(world, client, json.dumps(body).encode(), wanted.signing)
            except httpx.HTTPError as error:
                return Answered(type(error).__name__)
            if answer.status_code >= 400:
                return Answered(f"{answer.status_code} {_reason(answer)}".strip())
            run_id = answer.json().get("run_id", "") if answer.request.method == "POST" else ""
            return Answered(run_id=run_id)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(_progress, load)
            await open_loop.run(load, wanted.rate, request, timeout_s=TIMEOUT_S)
            nursery.cancel_scope.cancel()
        await _look_up(client, wanted, load, figures)


async def _submit(world: World, client: Any, body: bytes, signing: SigningKey | None) -> Any:
    headers = {"content-type": "application/json"}
    if signing is not None:
        nonce = world.random_bytes(NONCE_BYTES).hex()
        headers[SIGNATURE_HEADER] = sign(signing, "POST", DISPATCH, body, world.wall_ms(), nonce)
    return await client.post(DISPATCH, content=body, headers=headers)


def _reason(answer: Any) -> str:
    try:
        return str(answer.json().get("reason", ""))
    except (ValueError, AttributeError):
        return ""


async def _progress(load: Load) -> None:
    while True:
        await trio.sleep(1.0)
        p95 = percentile([each.took_ms for each in load.samples], 0.95)
        print(
            f"smoke: {load.sent} of {load.wanted} sent, {load.under_way} under way, {load.failed} failed,"
            f" p95 {p95:.0f} ms",
            file=sys.stderr,
        )


async def _look_up(client: Any, wanted: Wanted, load: Load, figures: Figures) -> None:
    """How accepted runs ended, and how long each had been due before a node had it. Of many, evenly spread ones."""
    run_ids = [each.run_id for each in load.samples if each.run_id]
    figures.accepted = len(run_ids)
    step = max(1, -(-len(run_ids) // LOOKED_UP_MAX))
    lags: list[float] = []
    ended: Counter[str] = Counter()
    room = trio.CapacityLimiter(LOOKED_UP_AT_ONCE)
    until_s = trio.current_time() + wanted.settle_s

    async def one(run_id: str) -> None:
        async with room:
            status, lag_ms = "UNKNOWN", None
            while True:
                found = await _run_of(client, run_id)
                if found is not None:
                    status, lag_ms = str(found["status"]), lag_of(found)
                if status in ENDED or trio.current_time() >= until_s:
                    break
                await trio.sleep(0.1)
        ended[status] += 1
        if lag_ms is None:
            figures.not_delivered += 1  # it counts as one that waits, or the worst would be left out
        else:
            lags.append(lag_ms)

    async with trio.open_nursery() as nursery:
        for run_id in run_ids[::step]:
            nursery.start_soon(one, run_id)
    figures.looked_up, figures.ended, figures.lags = sum(ended.values()), dict(ended), len(lags)
    figures.lag_p95_ms, figures.lag_avg_ms = percentile(lags, 0.95), average(lags)


async def _run_of(client: Any, run_id: str) -> Mapping[str, Any] | None:
    import httpx

    try:
        answer = await client.get(f"/api/runs/{run_id}")
        found: Mapping[str, Any] | None = answer.json() if answer.status_code == 200 else None
    except (httpx.HTTPError, ValueError):
        return None
    return found


def lag_of(run: Mapping[str, Any]) -> float | None:
    """From when a run was due until a node had it for the first time; None while none has."""
    claimed = [step["at_ms"] for step in run["timeline"] if step["event"] == "delivered"]
    if not claimed:
        return None
    due = next((step["at_ms"] for step in run["timeline"] if step["event"] == "due"), run["accepted_at_ms"])
    return float(max(0, min(claimed) - due))


def _summed(load: Load, figures: Figures) -> None:
    took = [each.took_ms for each in load.samples]
    figures.requests, figures.failed = len(load.samples), load.failed
    figures.p50_ms, figures.p95_ms = percentile(took, 0.5), percentile(took, 0.95)
    figures.max_ms = max(took, default=0.0)
    figures.late_p95_ms = percentile([each.late_ms for each in load.samples], 0.95)
    figures.failures = dict(Counter(each.failed for each in load.samples if each.failed).most_common(5))


# -- judging


def judged(figures: Figures, wanted: Wanted, most: Thresholds | None = None) -> Iterator[Found]:
    """Each threshold with its figure."""
    most = most or Thresholds()
    if figures.requests < SAMPLES_MIN:
        yield Found(ERROR, "requests", f"{figures.requests} prove nothing (at least {SAMPLES_MIN})")
    causes = "; ".join(f"{count} x {why}" for why, count in figures.failures.items())
    yield _below(
        "requests failed",
        figures.failed_percent,
        most.failed_percent,
        "%",
        f"{figures.failed} {causes}".strip(),
    )
    yield _below("p95 of requests", figures.p95_ms, most.p95_ms, "ms", f"of {figures.requests}")
    if figures.late_p95_ms > LATE_MS_MAX:
        late = f"{figures.late_p95_ms:.0f} ms (p95): this machine was too busy to send in time, which counts above"
        yield Found(WARNING, "sent late", late)
    if wanted.outbox:
        if figures.not_delivered or not figures.lags:
            detail = f"{figures.not_delivered} of {figures.looked_up} runs were delivered to no node in all the time"
            yield Found(
                ERROR,
                "outbox lag",
                detail if figures.looked_up else "no run was accepted: nothing is known of it",
            )
        else:
            of_runs = f"of {figures.lags} runs"
            yield _below("p95 of outbox lag", figures.lag_p95_ms, most.lag_p95_ms, "ms", of_runs)
            yield _below("average outbox lag", figures.lag_avg_ms, most.lag_avg_ms, "ms", of_runs)
    if wanted.agents:
        yield from _agents(figures, most)
    if wanted.dlq:
        more = figures.dead_letters - figures.dead_letters_before
        yield _below(
            "more dead letters", max(0, more), most.dead_letters, "", f"{figures.dead_letters} are queued"
        )
        good = figures.replay_answered == "200"
        yield Found(OK if good else ERROR, "a dry run of a replay", f"answered {figures.replay_answered}")


def _agents(figures: Figures, most: Thresholds) -> Iterator[Found]:
    ended = ", ".join(f"{count} {status}" for status, count in sorted(figures.ended.items())) or "none"
    good = figures.success_percent > most.success_percent
    detail = f"{figures.success_percent:.1f} % (more than {most.success_percent:g} %): {ended}"
    yield Found(OK if good else ERROR, "agents' success", detail)
    if figures.nodes_out:
        yield Found(ERROR, "nodes", f"not there: {', '.join(figures.nodes_out)}")
    else:
        yield Found(OK, "nodes", "all are there")


def _below(what: str, value: float, most: float, unit: str, of_what: str) -> Found:
    detail = f"{value:.1f} {unit} (less than {most:g} {unit}): {of_what}".replace("  ", " ").replace(
        " )", ")"
    )
    return Found(OK if value < most else ERROR, what, detail)
