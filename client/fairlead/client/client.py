"""The client that an application holds: submit, wait, cancel, over whichever proxy of the fleet is there.

A submission returns when it is durable; a broken link is dialled again meanwhile and neither loses nor doubles anything
(see `book`). What is under way is bounded by what the proxy grants: beyond it, submitting waits for room.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import trio

from fairlead.client.book import OVER, QUEUED, Book, Submit, encode
from fairlead.client.link import ClientLink, LinkSettings
from fairlead.client.run import CLOSED, Results, Run
from fairlead.protocol import messages as m
from fairlead.protocol.envelope import ChannelLimits
from fairlead.protocol.keys import IdentityKey, Role, derive, identity_key
from fairlead.protocol.limits import PAYLOAD_BYTES_MAX_DEFAULT
from fairlead.protocol.reasons import Reason, Refused
from fairlead.runtime.config_model import split_endpoint
from fairlead.runtime.link import FAREWELL_TIMEOUT_S
from fairlead.runtime.log import Log, StderrSink
from fairlead.runtime.metrics import Metrics
from fairlead.runtime.observer import Observer
from fairlead.runtime.secret import decode_node_key, decode_secret
from fairlead.runtime.world import RealWorld, World

RUNS_OPEN_MAX: Final = 4_096
ARGS_BYTES_MAX: Final = 32_768  # until the proxy says what it takes


class Client:
    """Made by `open_client`. All methods belong to the trio thread that it was opened in."""

    def __init__(self, world: World, observer: Observer, settings: LinkSettings, runs_open_max: int) -> None:
        self._world = world
        self._runs_open_max = runs_open_max
        self._args_bytes_max = ARGS_BYTES_MAX
        self._book: Book[Run] = Book(runs_open_max)
        self._room = trio.lowlevel.ParkingLot()
        self._results: Results | None = None
        self._closed = False
        self._elsewhere = len(settings.addresses) > 1
        self._watch_again: list[str] = []
        self._watch_at_s = float("inf")
        self._watch_due = trio.Event()
        self.welcomed = trio.Event()
        self.link = ClientLink(world, observer, settings, self)

    # -- what an application calls

    async def submit(
        self,
        command: str,
        args: Mapping[str, Any] | None = None,
        *,
        target: str = "any",
        ordering_key: str = "",
        priority: int = 5,
        deadline_ms: int = 0,
        delay_ms: int = 0,
        callback_url: str = "",
    ) -> Run:
        """Returns once the run is accepted durably. Raises Refused. Its deadline is the caller's (`trio.fail_after`).

        If this is cancelled before it returned, the run may have been accepted or not, like after a power cut.
        """
        asked = Submit(
            command, args or {}, target, ordering_key, priority, deadline_ms, delay_ms, callback_url
        )
        run = await self._put(asked)
        await self._answered(run)
        return run

    async def call(self, command: str, args: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Submit and wait for the result, at the price of one wake-up. Raises Refused or RunFailed."""
        run = await self._put(Submit(command, args or {}, **options), quiet=True)
        try:
            return await run.wait()
        except trio.Cancelled:
            self._withdraw(run)
            raise

    async def submit_many(self, items: Iterable[Submit]) -> list[Run | Refused]:
        """Each item's run, or why it was refused, in their order; what fits goes as one message and one commit."""
        runs: list[Run | Refused] = []
        try:
            for asked in items:
                try:
                    runs.append(await self._put(asked))
                except Refused as refused:
                    runs.append(refused)
            for index, run in enumerate(runs):
                if isinstance(run, Run):
                    try:
                        await run.wait_answered()
                    except Refused as refused:
                        runs[index] = refused
        except trio.Cancelled:
            for run in runs:
                if isinstance(run, Run):
                    self._withdraw(run)
            raise
        return runs

    def results(self) -> Results:
        """The stream of ends of this client's runs, from now on; the same stream until it is closed."""
        if self._results is None or self._results.closed:
            self._results = Results(self._taken)
        return self._results

    @property
    def runs_open(self) -> int:
        """Submissions whose end this application has not taken yet."""
        return len(self._book.entries) + (len(self._results.waiting) if self._results else 0)

    def status(self) -> dict[str, Any]:
        """How the link stands, and how much is under way."""
        return {**self.link.status(), "runs_open": self.runs_open, "runs_open_max": self._book.open_max}

    # -- submitting

    async def _put(self, asked: Submit, *, quiet: bool = False) -> Run:
        while self.runs_open >= self._book.open_max and not self._closed:
            await self._room.park()
        if self._closed:
            raise Refused(Reason.LINK_CLOSED, CLOSED)
        run = Run(encode(self._world.new_id(), asked, self._args_bytes_max, quiet=quiet), self._cancel)
        self._book.add(run)
        self.link.queued()
        return run

    async def _answered(self, run: Run) -> None:
        try:
            await run.wait_answered()
        except trio.Cancelled:
            self._withdraw(run)
            raise

    def _withdraw(self, run: Run) -> None:
        """Nobody waits for it any more: what was never sent never happens."""
        if self._book.withdraw(run):
            self._room.unpark()

    def _cancel(self, run: Run) -> None:
        if self._book.cancel(run):
            if run.stage is QUEUED and self._book.withdraw(run):
                self._room.unpark()
                run.end = m.RunEnd(run.run_id, "CANCELLED", b"", Reason.RUN_CANCELLED.value)
                run.wake()
            else:
                self.link.send(m.CancelRuns((run.run_id,)))

    def _taken(self, count: int) -> None:
        self._room.unpark(count=count)

    # -- what the link says (LinkOwner)

    def linked(self, welcome: m.ClientWelcome) -> Sequence[m.Message]:
        self._args_bytes_max = welcome.args_bytes_max
        self._book.open_max = min(self._runs_open_max, welcome.runs_open_max)
        self._watch_again.clear()
        self.welcomed.set()
        return self._book.resume()

    def unlinked(self) -> None:
        self._book.lost()

    def next_submit(self, bytes_max: int) -> tuple[m.Submission, ...]:
        return self._book.take(bytes_max)

    def submitted(self, message: m.Submitted) -> None:
        answered, watch, pause_ms = self._book.submitted(message.items, elsewhere=self._elsewhere)
        over = []
        for run in answered:
            run.wake()
            if run.stage is OVER:
                over.append(run)
        self._hand_on([run.end for run in over if run.end is not None], len(over))
        if watch or self._book.unsure:
            self._watch_again += watch
            self._watch_at_s = trio.current_time() + pause_ms / 1000
            self._watch_due.set()
        if self._elsewhere and any(each.reason == Reason.DISPATCH_DRAINING for each in message.items):
            self.link.end(Reason.LINK_CLOSED, "the proxy drains; another one takes over")

    def ended(self, message: m.RunsEnded) -> None:
        over = self._book.ended(message.items)
        for run in over:
            run.wake()
        self._hand_on([run.end for run in over if run.end is not None], len(over))

    def _hand_on(self, ends: list[m.RunEnd], over: int) -> None:
        if self._results is not None and not self._results.closed:
            self._results.put(ends)  # they stay open until they are taken
            over -= len(ends)
        if over:
            self._room.unpark(count=over)

    # -- life

    async def run(self) -> None:
        """The link and what belongs to it, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.link.run)
            nursery.start_soon(self._rewatch)

    async def _rewatch(self) -> None:
        """Ask again for runs that the proxy could not look for just then."""
        while True:
            await self._watch_due.wait()
            self._watch_due = trio.Event()
            await trio.sleep_until(self._watch_at_s)
            if self._book.say_again():
                self.link.queued()
            again = [run_id for run_id in self._watch_again if run_id in self._book.entries]
            self._watch_again.clear()
            for start in range(0, len(again), 512):
                self.link.send(m.Watch(tuple(again[start : start + 512])))

    def close(self) -> None:
        """Let go whoever waits. What was accepted goes on without us."""
        self._closed = True
        for run in self._book.entries.values():
            run.closed = True
            run.wake()
        if self._results is not None:
            self._results.close()
        self._room.unpark_all()


@asynccontextmanager
async def open_client(
    address: str | Sequence[str],
    *,
    client_id: str,
    secret: str | bytes | None = None,
    secret_previous: str | bytes | None = None,
    client_key: str | bytes | None = None,
    expected_proxy_id: str = "proxy",
    connect_timeout_s: float = 10.0,
    runs_open_max: int = RUNS_OPEN_MAX,
    payload_bytes_max: int = PAYLOAD_BYTES_MAX_DEFAULT,
    world: World | None = None,
    observer: Observer | None = None,
) -> AsyncIterator[Client]:
    """A client that is linked. Raises Refused where no proxy took it within `connect_timeout_s`, ValueError for a
    malformed address or key.

    `address` is host:port of a proxy's control port, or several of one fleet. The application holds the fleet's
    `secret`, or only its own key (`fairlead secret client-key ID`).
    """
    world = world or RealWorld()
    sink = None
    if observer is None:
        sink = StderrSink()
        observer = Observer(Log(sink, world.wall_ms, client_id, "warning"), Metrics(), world.wall_ms)
    addresses = (address,) if isinstance(address, str) else tuple(address)
    settings = LinkSettings(
        client_id, tuple(split_endpoint(each) for each in addresses), expected_proxy_id,
        _keys(client_id, secret, secret_previous, client_key),
        ChannelLimits(payload_bytes_max=payload_bytes_max),
    )  # fmt: skip
    client = Client(world, observer, settings, runs_open_max)
    failure: Exception | None = None  # the application's own, handed on as it is and not in a group
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            try:
                with trio.move_on_after(connect_timeout_s) as waiting:
                    await client.welcomed.wait()
                if waiting.cancelled_caught:
                    last = client.link.last_end
                    if last is None:
                        raise Refused(Reason.HANDSHAKE_TIMEOUT, f"{addresses[0]} did not answer")
                    raise Refused(last.reason, last.detail)
                yield client
            except Exception as error:
                failure = error
            finally:
                client.close()
                client.link.stop("the application closed its client")
                with trio.move_on_after(FAREWELL_TIMEOUT_S, shield=True):
                    while client.link.connected:  # noqa: ASYNC110 - the proxy is told that this end is meant
                        await trio.sleep(0.005)
                nursery.cancel_scope.cancel()
    finally:
        if sink is not None:
            sink.close()
    if failure is not None:
        raise failure


def _keys(
    client_id: str,
    secret: str | bytes | None,
    previous: str | bytes | None,
    client_key: str | bytes | None,
) -> tuple[IdentityKey, ...]:
    if (secret is None) == (client_key is None):
        raise ValueError("give either the secret or the client_key")
    if client_key is not None:
        return (identity_key(_bytes(client_key, decode_node_key, "client_key")),)
    assert secret is not None
    secrets = [secret] if previous is None else [secret, previous]
    return tuple(derive(_bytes(each, decode_secret, "secret"), Role.CLIENT, client_id, 0) for each in secrets)


def _bytes(value: str | bytes, decode: Any, name: str) -> bytes:
    found = decode(value) if isinstance(value, str) else value
    if isinstance(found, str):
        raise ValueError(f"{name} {found}")
    if len(found) < 32:
        raise ValueError(f"{name} is too short: {len(found)} bytes where 32 are needed")
    return bytes(found)
