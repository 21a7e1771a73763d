"""A node without a link: its inbox on disk, the proxy's endpoint on a socket, and the ladder in between."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from tests.support.callback_port import SECRET, serving
from tests.support.config_text import strong
from tests.support.memory_world import MemoryNetwork, MemoryWorld, quiet_observer

from fairlead.backend.callbacks import LADDER_S, CallbackSettings, ReplayEndpoint, ResultCallbacks
from fairlead.backend.inbox import Finished, Inbox
from fairlead.backend.inbox_schema import prepare
from fairlead.cli.main import main
from fairlead.protocol.messages import Result
from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.store.records import Report, Verdict
from fairlead.runtime.http.message import Request
from fairlead.runtime.http.server import HttpLimits, serve_connection
from fairlead.runtime.observer import Observer
from fairlead.runtime.outbound import Outbound
from fairlead.runtime.posting import Answer, OutboundFailed, Post
from fairlead.runtime.sqlite import InlineWriter, ThreadWriter, Writer
from fairlead.runtime.streams import ByteStream
from fairlead.runtime.world import RealWorld, World

TOKEN = strong("tasks token")


@dataclass
class NodeBench:
    inbox: Inbox
    writer: Writer
    callbacks: ResultCallbacks
    observer: Observer
    world: World
    linked: bool = False

    async def finish(self, run_id: str, fence: int = 1, **more: Any) -> None:
        fields = {
            "completed": True, "value_json": b'{"total":3}', "reason": "", "detail": "", "started_at_ms": 10,
            "finished_at_ms": 20, **more,
        }  # fmt: skip
        await self.inbox.finish([Finished(Result(run_id, fence, **fields), "t:do")])

    async def unacked(self) -> list[str]:
        return [result.run_id for result, _ in await self.inbox.unacked()]

    async def rows(self) -> list[Any]:
        return await self.writer.submit(
            lambda db: db.execute(
                "SELECT run_id, fence, attempts, is_dead, detail FROM result_callbacks ORDER BY run_id"
            ).fetchall()
        )


@asynccontextmanager
async def node(
    path: Path,
    world: World,
    post: Post,
    url: str = "http://127.0.0.1:1",
    *,
    after_s: float = 0.1,
    writer_of: Any = ThreadWriter,
) -> AsyncIterator[NodeBench]:
    writer = writer_of(path, "inbox", prepare)
    inbox, observer = Inbox(writer), quiet_observer(world)
    settings = CallbackSettings(url, "worker-1", SECRET, after_s)
    bench: NodeBench
    callbacks = ResultCallbacks(world, observer, settings, writer, inbox, lambda: bench.linked, post)
    bench = NodeBench(inbox, writer, callbacks, observer, world)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(callbacks.run)
            yield bench
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await inbox.aclose()


def real_post(world: World) -> Post:
    return Outbound(world, ["127.0.0.1"]).post


async def until(bench: NodeBench, wanted: list[str]) -> None:
    with trio.fail_after(20):
        while await bench.unacked() != wanted:
            await trio.sleep(0.05)


async def test_a_result_reaches_the_proxy_without_a_link_and_is_acknowledged(tmp_path: Path) -> None:
    world = RealWorld()
    async with serving(Verdict.SETTLED) as port:
        url = f"http://127.0.0.1:{port.port}/"
        async with node(tmp_path / "inbox.db", world, real_post(world), url) as bench:
            await bench.finish("run/1", 3)
            await bench.finish(
                "run-2", 1, completed=False, value_json=b"", reason="HANDLER_FAILED", detail="x"
            )
            await until(bench, [])
            assert sorted(port.settled.reports, key=lambda each: each.run_id) == [
                Report("run-2", 1, "worker-1", False, b"", "HANDLER_FAILED", "x", 10, 20),
                Report("run/1", 3, "worker-1", True, b'{"total":3}', "", "", 10, 20),
            ]
            assert await bench.rows() == []


async def test_what_a_proxy_has_already_or_does_not_need_is_acknowledged_too(tmp_path: Path) -> None:
    world = RealWorld()
    async with serving(Verdict.ALREADY, Verdict.STALE) as port:
        url = f"http://127.0.0.1:{port.port}"
        async with node(tmp_path / "inbox.db", world, real_post(world), url) as bench:
            await bench.finish("run-1")
            await bench.finish("run-2")
            await until(bench, [])


@pytest.mark.parametrize("verdict", [Verdict.UNKNOWN, Verdict.FOREIGN])
async def test_a_result_that_nobody_took_is_kept_and_replayed(tmp_path: Path, verdict: Verdict) -> None:
    world = RealWorld()
    async with serving(verdict) as port:
        url = f"http://127.0.0.1:{port.port}"
        async with node(tmp_path / "inbox.db", world, real_post(world), url) as bench:
            await bench.finish("run-1")
            with trio.fail_after(20):
                while not bench.callbacks.dead:
                    await trio.sleep(0.05)
            assert await bench.unacked() == ["run-1"]
            assert bench.observer.rejects()["run"] == {"CALLBACK_DEAD": 1}
            port.settled.verdicts = [Verdict.SETTLED]
            assert await bench.callbacks.replay() == 1
            await until(bench, [])
            assert await bench.callbacks.replay() == 0


# -- in virtual time, with a proxy in memory


class Scripted:
    def __init__(self, *answers: Answer | Exception) -> None:
        self.answers, self.asked = list(answers), list[tuple[float, str, bytes]]()

    async def post(self, url: str, headers: Any, body: bytes, timeout_s: float) -> Answer:
        await trio.sleep(0.01)
        self.asked.append((trio.current_time(), url, body))
        said = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(said, Exception):
            raise said
        return said


TAKEN = Answer(200, (), b"{}")


@asynccontextmanager
async def virtual(path: Path, scripted: Scripted, **options: Any) -> AsyncIterator[NodeBench]:
    world = MemoryWorld(MemoryNetwork(), seed=3)
    async with node(path, world, scripted.post, writer_of=InlineWriter, **options) as bench:
        yield bench


async def test_nothing_is_sent_while_a_link_is_up_or_was_just_now(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    scripted = Scripted(TAKEN)
    async with virtual(tmp_path / "inbox.db", scripted, after_s=10) as bench:
        bench.linked = True
        await bench.finish("run-1")
        await trio.sleep(60)
        assert not scripted.asked
        bench.linked = False
        await trio.sleep(9)
        bench.linked = True
        await trio.sleep(1)
        bench.linked = False
        await trio.sleep(9)
        assert not scripted.asked
        await trio.sleep(2)
        assert [url for _, url, _ in scripted.asked] == ["http://127.0.0.1:1/callbacks/runs/run-1"]
        assert await bench.unacked() == []


async def test_the_ladder_begins_short_and_ends_with_a_result_that_is_kept(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    scripted = Scripted(OutboundFailed("no answer"), Refused(Reason.CALLBACK_ADDRESS_REFUSED, "moved"))
    async with virtual(tmp_path / "inbox.db", scripted) as bench:
        await bench.finish("run-1")
        await trio.sleep(sum(LADDER_S[:5]) * 1.2 + 10)
        times = [at for at, _, _ in scripted.asked]
        assert len(times) == 5
        for rung, before, after in zip(LADDER_S[1:], times, times[1:], strict=False):
            assert rung <= after - before <= rung * 1.1 + 1
        assert len({body for _, _, body in scripted.asked}) == 1
        assert (await bench.rows())[0][2:4] == (5, 0)


async def test_the_state_survives_the_node(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    path = tmp_path / "inbox.db"
    async with virtual(path, Scripted(Answer(403, (), b'{"reason":"FOREIGN_STATEMENT"}'))) as bench:
        await bench.finish("run-1")
        await trio.sleep(2)
        assert bench.callbacks.dead == 1
    again = Scripted(TAKEN)
    async with virtual(path, again) as bench:
        await trio.sleep(5)
        assert bench.callbacks.dead == 1
        assert not again.asked
        assert await bench.callbacks.replay() == 1
        await trio.sleep(2)
        assert await bench.unacked() == []


async def test_a_new_attempt_begins_at_the_first_rung(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    scripted = Scripted(Answer(403, (), b'{"reason":"FOREIGN_STATEMENT"}'), TAKEN)
    async with virtual(tmp_path / "inbox.db", scripted) as bench:
        await bench.finish("run-1", 1)
        await trio.sleep(2)
        assert bench.callbacks.dead == 1
        await bench.finish("run-1", 2)  # asked for again: the stored end, under the newest fence
        await trio.sleep(2)
        assert await bench.unacked() == []
        assert [json.loads(body)["fence"] for _, _, body in scripted.asked] == [1, 2]


async def test_what_a_link_got_acknowledged_meanwhile_is_forgotten_here(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    scripted = Scripted(OutboundFailed("no answer"))
    async with virtual(tmp_path / "inbox.db", scripted) as bench:
        await bench.finish("run-1")
        await trio.sleep(3)
        tried = len(scripted.asked)
        await bench.inbox.acked([("run-1", 1)], 99)
        await trio.sleep(60)
        assert len(scripted.asked) == tried
        assert await bench.rows() == []


async def test_what_was_given_up_and_then_went_over_a_link_is_not_counted_any_more(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    scripted = Scripted(Answer(403, (), b'{"reason":"FOREIGN_STATEMENT"}'))
    async with virtual(tmp_path / "inbox.db", scripted) as bench:
        await bench.finish("run-1")
        await trio.sleep(2)
        assert (bench.callbacks.dead, ReplayEndpoint(None, bench.callbacks).dead) == (1, 1)
        bench.linked = True
        await bench.inbox.acked([("run-1", 1)], 99)
        await trio.sleep(10)
        assert bench.callbacks.dead == 0


def test_a_node_without_callbacks_needs_no_http_client():
    """What only the proxy needs is an extra, which a node's installation leaves out."""
    script = (
        "import sys; sys.modules.update(httpcore=None, httpx=None, certifi=None); import fairlead.backend.app"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# -- the node's endpoint, and the operator's command


def request(method: str = "POST", *authorization: bytes) -> Request:
    headers = [(b"authorization", each) for each in authorization]
    return Request(method, "/callbacks/replay", "", headers, b"", "127.0.0.1", "corr")


GOOD = f"Bearer {TOKEN}".encode()


@pytest.mark.parametrize(
    ("token", "authorization"),
    [
        (None, []), (None, [GOOD]), (None, [b"Bearer None"]), (TOKEN, []), (TOKEN, [b"Bearer "]), (TOKEN, [b""]),
        (TOKEN, [TOKEN.encode()]), (TOKEN, [GOOD + b"0"]), (TOKEN, [GOOD[:-1]]), (TOKEN, [GOOD, GOOD]),
        (TOKEN, [b"Basic " + TOKEN.encode()]), (TOKEN, [b"\xff\xfe"]),
    ],
)  # fmt: skip
async def test_without_the_token_the_endpoint_is_closed(
    token: str | None, authorization: list[bytes]
) -> None:
    with pytest.raises(Refused) as caught:
        await ReplayEndpoint(token, None).handle(request("POST", *authorization))
    assert caught.value.reason is Reason.CALLBACK_TOKEN_INVALID


async def test_the_token_opens_it_and_only_post_is_taken():
    endpoint = ReplayEndpoint(TOKEN, None)
    assert json.loads((await endpoint.handle(request("POST", GOOD))).body) == {"replayed": 0}
    refused = await endpoint.handle(request("GET", GOOD))
    assert refused.status == 405
    assert ("allow", "POST") in refused.headers


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("TASKS_AUTH_TOKEN", "FAIRLEAD_OPS_KEY", "FAIRLEAD_URL"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


async def run_command(*arguments: str) -> int:
    return await trio.to_thread.run_sync(lambda: main(["callbacks", "replay", *arguments]))


async def test_operators_replay_a_nodes_callbacks_from_the_command_line(
    tmp_path: Path, clean: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = RealWorld()
    async with node(tmp_path / "inbox.db", world, Scripted(TAKEN).post, after_s=3_600) as bench:
        await bench.finish("run-1")
        await trio.sleep(0.6)
        await bench.writer.submit(
            lambda db: db.execute("INSERT INTO result_callbacks VALUES ('run-1', 1, 10, 0, 1, 'x')")
        )
        endpoint = ReplayEndpoint(TOKEN, bench.callbacks)

        async def serve(stream: ByteStream) -> None:
            await serve_connection(stream, endpoint.handle, HttpLimits(), world, bench.observer)

        listener = await world.listen_tcp("127.0.0.1", 0)
        async with trio.open_nursery() as nursery:

            async def accept() -> None:
                while True:
                    nursery.start_soon(serve, await listener.accept())

            nursery.start_soon(accept)
            url = f"http://127.0.0.1:{listener.port}"
            assert await run_command("--url", url, "--token", "wrong") == 1
            assert "CALLBACK_TOKEN_INVALID" in capsys.readouterr().err
            clean.setenv("TASKS_AUTH_TOKEN", TOKEN)
            assert await run_command("--url", url) == 0
            assert capsys.readouterr().out == "replayed 1\n"
            assert await run_command("--url", url, "--tenant", "t") == 1
            nursery.cancel_scope.cancel()
        listener.close()


async def test_operators_replay_a_proxys_callbacks_from_the_command_line(
    clean: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving() as port:
        for index in range(2):
            event = port.store.add(f"run-{index}", "https://example.com/")
            await port.store.claim_callbacks(10, 1, 1_000)
            await port.store.settle_callback(event, "dead", 0, "answered 410", 1)
        clean.setenv("FAIRLEAD_URL", f"http://127.0.0.1:{port.port}/")
        assert await run_command("--ops-key", "k" * 32, "--event", "evt-run-0") == 0
        assert await run_command("--ops-key", "k" * 32) == 0
        assert capsys.readouterr().out == "replayed 1\nreplayed 1\n"
        assert await run_command("--ops-key", "k", "--token", "t") == 1
        assert await run_command("--url", "http://127.0.0.1:1") == 1
        assert "did not answer" in capsys.readouterr().err
