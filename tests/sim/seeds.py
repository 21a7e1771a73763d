"""One seed from its options to its verdict: run, heal, settle, ask the oracles; and the shortest way to what it found.

The same seed does the same in any process. `Setup` is data, so a failing seed is made shorter by leaving out faults and
steps, each trial a whole run.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import trio
from tests.sim.actions import Actions
from tests.sim.client_record import Witness
from tests.sim.clients import Clients
from tests.sim.handlers import handlers_of
from tests.sim.oracle import Oracle
from tests.sim.oracles import ORACLES
from tests.sim.oracles_clients import ClientOracle, left_of
from tests.sim.record import Record
from tests.sim.recorder import Recorder
from tests.sim.statements import Statement, overhearing
from tests.sim.workload import Setup, Step, draw_setup

from fairlead.testing import SimCluster, inject, shrink
from fairlead.testing import simulate as simulate_cluster

SETTLES_WITHIN_S: Final = 150.0
REPLAYED_BY_ITSELF: Final = (
    5  # records, one after another, each as often as it may be, until each run's deadline
)
STARTS_WITHIN_S: Final = 120.0
LOOK_EVERY_S: Final = 0.5
QUIET_S: Final = 0.1
BREATHES_S: Final = 2.0  # before the plots that come when the rest is over
SHRINK_TRIALS_MAX: Final = 60


@dataclass
class Outcome:
    """What became of one seed."""

    setup: Setup
    violations: list[str] = field(default_factory=list)
    timeline: str = ""
    trace_hash: str = ""
    virtual_s: float = 0.0
    cpu_s: float = 0.0
    faults: int = 0
    runs: int = 0
    calls: int = 0
    steps: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def caught_by(self) -> str:
        """Which check spoke first: an oracle's name, or the kind of failure. Empty where nothing was found."""
        return self.violations[0].partition(" ")[2].partition(":")[0] if self.violations else ""


def run_seed(
    seed: int, *, setup: Setup | None = None, scale: float = 1.0, oracles: Sequence[type[Oracle]] = ORACLES
) -> Outcome:
    """Run one seed. `setup`: instead of what the seed draws (with less in it)."""
    setup = setup or draw_setup(seed, scale=scale)
    outcome = Outcome(setup)
    began_s = time.process_time()
    recorder, witness = Recorder(), Witness()
    held: list[Record] = []
    seen: list[SimCluster] = []

    def heard(said: Statement) -> None:
        if held:
            held[0].was_said(said)

    async def scenario(cluster: SimCluster) -> None:
        seen.append(cluster)
        record = Record(cluster, setup)
        held.append(record)
        record.let_in_twice = recorder.twice
        record.listeners = [each(record) for each in oracles]
        if record.clients is not None:
            record.clients.listeners = [each for each in record.listeners if isinstance(each, ClientOracle)]
            witness.tell = record.clients.tell
        try:
            await _play(cluster, record, recorder)
        finally:
            record.over = True
            outcome.violations = record.violations
            outcome.runs, outcome.calls = len(record.runs), len(record.executions)
            outcome.counts = record.counts

    options = replace(setup.options, start=False)
    try:
        with (
            recorder.watching(),
            overhearing(heard),
            witness.watching() if setup.has_clients else nullcontext(),
        ):
            simulate_cluster(
                handlers_of(lambda: held[0] if held else None), scenario, seed=seed, options=options
            )
    except Exception as error:  # whatever ends a simulation is a finding of its seed
        outcome.violations.append(f"{seen[0].now if seen else 0.0:.6f} {_named(error)}")
    if not seen:
        return outcome  # it never began
    cluster = seen[0]
    outcome.timeline, outcome.trace_hash = cluster.trace.text(), cluster.trace.hash()
    outcome.virtual_s, outcome.faults = cluster.now, cluster.trace.faults
    outcome.steps = len(setup.steps)
    outcome.cpu_s = time.process_time() - began_s
    return outcome


def _named(error: BaseException) -> str:
    """The innermost exception and where it came from."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    where = " < ".join(f"{Path(each.filename).name}:{each.lineno} {each.name}" for each in reversed(frames))
    return f"{type(error).__name__}: {str(error)[:500]} at {where}"


async def _play(cluster: SimCluster, record: Record, recorder: Recorder) -> None:
    setup = record.setup
    recorder.listen(cluster)
    actions = Actions(cluster, record, recorder)
    options = cluster.options
    if actions.clients is not None:
        record.refers = actions.clients.servers.refer
        for node in options.node_names:
            actions.clients.servers.join(node)
    await cluster.start(*options.proxy_names)
    await cluster.start(*options.node_names, *options.clients)
    await cluster.synchronized()
    cluster.beside(actions.listen)
    begin = cluster.now
    async with trio.open_nursery() as nursery:
        nursery.start_soon(inject, cluster, setup.faults)
        nursery.start_soon(_look, cluster, record, begin + setup.long_s)
        for number, step in enumerate(setup.steps):
            if step.at_s >= setup.long_s:
                break  # a plot, for when the rest is over
            await trio.sleep_until(begin + step.at_s)
            if record.violations:
                return
            cluster.beside(actions.perform, step, number)
    if record.violations:
        return
    cluster.trace.add("> everything is over")
    await actions.undo()
    if actions.clients is not None:
        actions.clients.servers.heal()
    cluster.heal()
    await _plots_alone(cluster, actions, record)
    if actions.clients is not None and not record.violations:
        await _clients_again(cluster, actions.clients, record)
    await _settle(cluster, record)
    if not record.violations:
        record.tell("at_rest")


async def _plots_alone(cluster: SimCluster, actions: Actions, record: Record) -> None:
    """Those that come when the rest is over, one after another."""
    setup = record.setup
    later = [(number, step) for number, step in enumerate(setup.steps) if step.at_s >= setup.long_s]
    if not later:
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_look, cluster, record, float("inf"))
        await cluster.run_for(BREATHES_S)
        for number, step in later:
            if record.violations:
                break
            await actions.perform(step, number)
        nursery.cancel_scope.cancel()
    cluster.heal()


async def _look(cluster: SimCluster, record: Record, until_s: float) -> None:
    """Every half second, as long as there are steps and faults."""
    while cluster.now < until_s and not record.violations:
        await cluster.run_for(LOOK_EVERY_S)
        record.drain()
        record.tell("on_tick")


async def _settle(cluster: SimCluster, record: Record) -> None:
    """Until everything has ended. That it does, in time, is a promise too."""
    names = [*cluster.options.proxy_names, *cluster.options.node_names, "app"]
    deaf = record.counts.get("step revoke_client", 0) > 0
    nodes = list(cluster.options.node_names)
    sick = record.setup.has("disk_error", "disk_full")

    def settled() -> bool:
        record.drain()
        record.tell("on_tick")
        if record.violations:
            return True
        if cluster.now - record.last_change_s < QUIET_S:
            return False  # what follows from a commit in memory comes a little after it
        positions = {
            each.control.registry.position for each in record.proxies().values() if each.control is not None
        }
        if cluster.store is not None and len(positions) > 1:
            return False  # the one that slept hears of it with the next heartbeat
        if not all(cluster.processes[name].ready for name in names if name != "app" or not deaf):
            return False
        open_ = [run for run in record.runs.values() if not run.ended]
        app = cluster.processes["app"]
        unheard = [
            run for life, run in record.open_client_runs
            if not deaf and life is app.life and run.ended is None and not run.closed and run.refused is None
        ]  # fmt: skip
        # An acknowledgement that the disk did not take is said again on the next link, and harms nobody until then.
        return not open_ and not unheard and (sick or not _unacknowledged(cluster))

    within_s = SETTLES_WITHIN_S
    if (
        record.setup.worker == "automatic"
    ):  # of a command that no node offers any more each replay waits for its end
        within_s += REPLAYED_BY_ITSELF * record.setup.max_count * cluster.options.deadline_ms / 1000
    try:
        await cluster.until(settled, within_s, every_s=LOOK_EVERY_S)
        cluster.check_processes()
        if not record.violations:
            await cluster.synchronized(nodes, SETTLES_WITHIN_S)
            await cluster.until(settled, SETTLES_WITHIN_S, every_s=0.05)
    except trio.TooSlowError:
        record.violated(
            "liveness",
            f"not settled {within_s:g} s after all faults ended: {_unsettled(cluster, record)}",
        )


async def _clients_again(cluster: SimCluster, clients: Clients, record: Record) -> None:
    """They are served, and leave nothing behind when they are gone."""

    proxies = cluster.options.proxy_names

    def gone() -> bool:
        return bool(record.violations) or not (
            clients.record.under_way or any(map(left_of, record.proxies().values()))
        )

    try:
        await cluster.until(lambda: len(record.proxies()) == len(proxies), SETTLES_WITHIN_S)
        await cluster.until(gone, SETTLES_WITHIN_S, every_s=LOOK_EVERY_S)
        if not record.setup.forgetful and not record.violations:
            await clients.serve_again()
            await cluster.until(gone, SETTLES_WITHIN_S, every_s=LOOK_EVERY_S)
    except trio.TooSlowError:
        pass  # what is left an oracle says


def _unacknowledged(cluster: SimCluster) -> int:
    count = 0
    for name in cluster.options.node_names:
        count += cluster.query(
            name, "SELECT count(*) FROM inbox WHERE acked_at_ms IS NULL AND state = 'finished'"
        )[0][0]
    return count


def _unsettled(cluster: SimCluster, record: Record) -> str:
    found = [
        f"{name} does not serve" for name, each in cluster.processes.items() if each.body and not each.ready
    ]
    found += [
        f"run {run.run_id} is {run.status} on {run.node_id}" for run in record.runs.values() if not run.ended
    ][:5]
    app = cluster.processes["app"]
    found += [
        f"the application was not told of {run.run_id} ({record.runs[run.run_id].status})"
        for life, run in record.open_client_runs
        if life is app.life and run.ended is None and not run.closed and run.run_id in record.runs
    ][:5]
    try:
        found.append(f"{_unacknowledged(cluster)} results are not acknowledged")
    except FileNotFoundError:
        found.append("a node has no inbox")
    return "; ".join(found)


# -- many


def many(seeds: Iterable[int], jobs: int, minutes: float, scale: float) -> Iterator[Outcome]:
    """Their outcomes, as they come. Stops taking new ones when the time is up."""
    until_s = time.monotonic() + minutes * 60 if minutes else float("inf")
    chosen = ((seed, scale) for seed in seeds if time.monotonic() < until_s)
    if jobs == 1:
        yield from map(_one, chosen)
        return
    ignore = (
        signal.SIGINT,
        signal.SIG_IGN,
    )  # who pressed Ctrl-C wants the table, not a word from every worker
    with multiprocessing.get_context("spawn").Pool(jobs, signal.signal, ignore) as pool:
        pending: list[Any] = []
        for each in chosen:
            pending.append(pool.apply_async(_one, (each,)))
            while len(pending) >= 4 * jobs:
                yield pending.pop(0).get()
        for left in pending:
            yield left.get()


def _one(asked: tuple[int, float]) -> Outcome:
    outcome = run_seed(asked[0], scale=asked[1])
    outcome.timeline = ""  # nobody reads that of a seed among many
    return outcome


# -- shorter


def shorten(
    found: Outcome, *, said: Callable[[str], None] = lambda _: None, oracles: Sequence[type[Oracle]] = ORACLES
) -> Outcome:
    """The same violation with less: faults first, then steps (halves of them, and each alone)."""
    setup, best = found.setup, found
    trials = 0

    def still(candidate: Setup) -> bool:
        nonlocal best, trials
        trials += 1
        outcome = run_seed(setup.seed, setup=candidate, oracles=oracles)
        fails = outcome.caught_by == found.caught_by
        if fails:
            best = outcome
        return fails

    faults = shrink(setup.faults, lambda plan: still(replace(best.setup, faults=plan)), SHRINK_TRIALS_MAX)
    said(f"{len(setup.faults)} faults -> {len(faults)}, after {trials} runs")
    steps: Any = shrink(
        best.setup.steps,
        lambda plan: still(replace(best.setup, steps=plan)),
        SHRINK_TRIALS_MAX,  # type: ignore[arg-type]
    )
    said(f"{len(setup.steps)} steps -> {len(steps)}, after {trials} runs")
    return best


def plan_text(setup: Setup) -> str:
    """The steps and faults that a run consists of, in their order."""
    both: Sequence[Step | Any] = sorted((*setup.steps, *setup.faults), key=lambda each: each.at_s)
    return "\n".join(f"  {'' if isinstance(each, Step) else '! '}{each}" for each in both)
