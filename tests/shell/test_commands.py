"""Commands without Python, executed: real programs, a real HTTP server, a scripted console."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.shell.test_program import family, gone, is_running, pids_in
from tests.support.engine import Engine, running_engine
from tests.support.http_server import HttpServer, Reply
from tests.support.processes import free_port
from tests.support.rcon_server import RconServer
from tests.unit.backend.test_node_config import BASE, read

from fairlead.backend import Node
from fairlead.backend.commands import handlers_of
from fairlead.protocol.messages import Cancel, Identity, Result
from fairlead.protocol.reasons import Reason
from fairlead.runtime.config import NOT_KEYS
from fairlead.runtime.outbound import Outbound
from fairlead.runtime.posting import Post
from fairlead.runtime.world import RealWorld

PASSWORD = "swordfish"


@pytest.fixture
def server() -> Iterator[HttpServer]:
    found = HttpServer()
    yield found
    found.close()


@pytest.fixture
def console() -> Iterator[RconServer]:
    found = RconServer(PASSWORD)
    yield found
    found.close()


@asynccontextmanager
async def offering(folder: Path, rcon_port: int = 0, **command: Any) -> AsyncIterator[Engine]:
    """A node's executor with one command, `t:do`."""
    shared = {"rcon": {"port": rcon_port, "password": PASSWORD}} if rcon_port else {}
    config = read({**BASE, **shared, "commands": [{"name": "t:do", **command}]})
    world, node = RealWorld(), Node()

    def post_through(hosts: Collection[str]) -> Post:
        return Outbound(world, hosts).post

    node.handlers = handlers_of(config, world, 1_000, post_through)
    async with running_engine(folder / "inbox.db", node) as engine:
        yield engine


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


async def done(engine: Engine, timeout_ms: int = 20_000, **arguments: Any) -> Result:
    return await engine.result(args_json=json.dumps(arguments).encode(), timeout_ms=timeout_ms)


async def program(folder: Path, code: str, timeout_ms: int = 20_000, **more: Any) -> Result:
    async with offering(folder, run=python(code), **more) as engine:
        return await done(engine, timeout_ms)


async def answered(folder: Path, server: HttpServer, reply: Reply, **more: Any) -> Result:
    server.reply = reply
    async with offering(folder, post=f"http://127.0.0.1:{server.port}/do", **more) as engine:
        return await done(engine, more.pop("timeout_ms", 20_000))


def ended(result: Result) -> tuple[str, str]:
    assert not result.completed
    return result.reason, result.detail


# -- programs


async def test_a_program_gets_the_arguments_and_the_defaults_and_its_json_is_the_result(
    tmp_path: Path,
) -> None:
    parameters = {"text": "string", "times": {"type": "integer", "default": 2}}
    async with offering(tmp_path, run=["cat"], parameters=parameters) as engine:
        found = await done(engine, text="héllo\n")
    assert found.completed
    assert json.loads(found.value_json) == {"text": "héllo\n", "times": 2}


async def test_a_program_knows_who_asks_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIRLEAD_PROXY_SECRET", "not for programs")
    code = "import json, os; print(json.dumps({k: v for k, v in os.environ.items() if k != 'LC_CTYPE'}))"
    async with offering(tmp_path, run=python(code)) as engine:
        found = await engine.result(
            run_id="r2",
            fence=3,
            root_run_id="r1",
            identity=Identity("ann", "human", session="s1"),
            tenant="acme",
        )
    given = json.loads(found.value_json)
    assert given == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8",
        "FAIRLEAD_COMMAND": "t:do", "FAIRLEAD_NODE": "n1", "FAIRLEAD_RUN_ID": "r2", "FAIRLEAD_ATTEMPT": "3",
        "FAIRLEAD_IDEMPOTENCY_KEY": "r1", "FAIRLEAD_TENANT": "acme", "FAIRLEAD_PRINCIPAL": "ann",
        "FAIRLEAD_SUBJECT_TYPE": "human", "FAIRLEAD_SESSION": "s1", "FAIRLEAD_CORRELATION_ID": "corr",
        "FAIRLEAD_DEADLINE_AT_MS": "4600000",
    }  # fmt: skip
    page = (Path(__file__).parents[2] / "docs/commands.md").read_text()
    assert all(f"`{name}`" in page for name in given), "the page names all of them"
    ours = {name for name in given if name.startswith("FAIRLEAD_")}
    assert ours <= {*NOT_KEYS}, "and a program may start one of our processes with them"


@pytest.mark.parametrize(
    ("said", "kind", "value"),
    [("", "json", None), ("7", "json", 7), ('"a"', "json", "a"), ("", "text", ""), ("7\\n", "text", "7"),
     ("two\\nlines\\n", "text", "two\nlines")],
)  # fmt: skip
async def test_what_a_program_says_is_json_or_text(tmp_path: Path, said: str, kind: str, value: Any) -> None:
    found = await program(tmp_path, f"print({said!r}.encode().decode('unicode_escape'), end='')", result=kind)
    assert found.completed
    assert json.loads(found.value_json) == value


@pytest.mark.parametrize("said", ["{", "{}{}", "NaN", '{"a":1,"a":2}', "1e", "9" * 40, "[" * 100 + "]" * 100])
async def test_what_is_no_json_is_no_result(tmp_path: Path, said: str) -> None:
    reason, detail = ended(await program(tmp_path, f"print({said!r})"))
    assert reason == Reason.RESULT_INVALID.value
    assert detail.startswith("what the program said is no JSON: ")


async def test_bytes_that_are_no_text_are_no_result(tmp_path: Path) -> None:
    code = "import sys; sys.stdout.buffer.write(b'\\xff')"
    assert ended(await program(tmp_path, code, result="text"))[0] == Reason.RESULT_INVALID.value


async def test_a_huge_output_is_refused_by_its_size(tmp_path: Path) -> None:
    found = await program(tmp_path, "print('x' * 5_000_000)", result="text")
    assert ended(found) == (Reason.RESULT_TOO_LARGE.value, "the program said 5000001 bytes")


@pytest.mark.parametrize(
    ("code", "reason", "detail"),
    [
        (
            "import sys; sys.exit('no\\nsuch \\x1b[1mplayer')",
            Reason.HANDLER_FAILED,
            "exit status 1: no such  [1mplayer",
        ),
        ("import sys; sys.exit(75)", Reason.HANDLER_FAILED_TRANSIENT, "exit status 75: (nothing was said)"),
        (
            "import os; os.kill(os.getpid(), 9)",
            Reason.HANDLER_FAILED,
            "killed by SIGKILL: (nothing was said)",
        ),
    ],
)
async def test_how_a_program_fails(tmp_path: Path, code: str, reason: Reason, detail: str) -> None:
    assert ended(await program(tmp_path, code)) == (reason.value, detail)


async def test_of_a_long_complaint_the_end_is_told(tmp_path: Path) -> None:
    code = "import sys; sys.stderr.write('x' * 100_000 + ' and at last why'); sys.exit(2)"
    detail = ended(await program(tmp_path, code))[1]
    assert detail.endswith("xx and at last why")
    assert len(detail) < 2_000


async def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    async with offering(tmp_path, run=["/no/such/program"]) as engine:
        found = await done(engine)
    assert ended(found) == (
        Reason.HANDLER_FAILED.value,
        "/no/such/program cannot be started: No such file or directory",
    )


async def test_a_program_that_is_being_replaced_may_be_there_later(tmp_path: Path) -> None:
    """One that is open for writing cannot be executed (ETXTBSY)."""
    program = tmp_path / "program"
    shutil.copy("/bin/true", program)
    with open(program, "r+b"):
        async with offering(tmp_path, run=[str(program)]) as engine:
            assert ended(await done(engine))[0] == Reason.HANDLER_FAILED_TRANSIENT.value


@pytest.mark.parametrize(
    ("effect", "reason"), [("once", Reason.OUTCOME_UNKNOWN), ("idempotent", Reason.HANDLER_TIMEOUT)]
)
async def test_at_its_time_a_program_is_killed_with_its_children(
    tmp_path: Path, effect: str, reason: Reason
) -> None:
    code = family(tmp_path / "pids", "time.sleep(600)")
    found = await program(tmp_path, code, timeout_ms=3_000, effect=effect)
    assert ended(found)[0] == reason.value
    await gone(await pids_in(tmp_path / "pids"))


@pytest.mark.parametrize("effect", ["once", "idempotent"])
async def test_cancelled_a_program_is_killed_with_its_children(tmp_path: Path, effect: str) -> None:
    code = family(tmp_path / "pids", "time.sleep(600)", deaf=True)
    async with offering(tmp_path, run=python(code), effect=effect) as engine:
        engine.offer(timeout_ms=60_000)
        pids = await pids_in(tmp_path / "pids")
        assert all(is_running(pid) for pid in pids)
        engine.executor.cancel(Cancel("r1", 1))
        found = await engine.next_report()
        assert isinstance(found, Result)
        assert ended(found)[0] == Reason.RUN_CANCELLED.value
        await gone(pids)


async def test_when_the_node_stops_its_programs_do(tmp_path: Path) -> None:
    async with offering(tmp_path, run=python(family(tmp_path / "pids", "time.sleep(600)"))) as engine:
        engine.offer(timeout_ms=60_000)
        pids = await pids_in(tmp_path / "pids")
    await gone(pids)


async def test_no_more_programs_run_than_handlers_may(tmp_path: Path) -> None:
    """The engine has two slots."""
    code = (
        "import os, time, pathlib, sys\n"
        f"mine = pathlib.Path({str(tmp_path)!r}, 'running-' + str(os.getpid()))\n"
        "mine.touch(); time.sleep(0.2)\n"
        "print(len(list(mine.parent.glob('running-*')))); mine.unlink()"
    )
    async with offering(tmp_path, run=python(code)) as engine:
        for number in range(6):
            engine.offer(run_id=f"r{number}", timeout_ms=20_000)
        found = [await engine.next_report() for _ in range(6)]
    assert max(json.loads(each.value_json) for each in found if isinstance(each, Result)) <= 2


# -- a local HTTP server


async def test_a_server_gets_the_arguments_and_who_asks(tmp_path: Path, server: HttpServer) -> None:
    server.reply = Reply(201, b'{"kicked":"Bob"}')
    url = f"http://localhost:{server.port}/kick?now=1"
    async with offering(tmp_path, post=url, parameters={"player": "string"}) as engine:
        found = await engine.result(
            args_json=b'{"player":"Bob"}', run_id="r2", fence=2, root_run_id="r1", tenant="acme",
            identity=Identity("ann é\r\nx: y", "human"), timeout_ms=20_000,
        )  # fmt: skip
    assert (found.completed, found.value_json) == (True, b'{"kicked":"Bob"}')
    (asked,) = server.asked
    assert (asked.path, asked.body) == ("/kick?now=1", b'{"player":"Bob"}')
    expected = {
        "content-type": "application/json", "idempotency-key": "r1", "x-correlation-id": "corr",
        "x-fairlead-run-id": "r2", "x-fairlead-attempt": "2", "x-fairlead-command": "t:do", "x-fairlead-node": "n1",
        "x-fairlead-tenant": "acme", "x-fairlead-principal": "ann %C3%A9%0D%0Ax: y",
        "x-fairlead-subject-type": "human", "x-fairlead-deadline-at-ms": "4600000",
    }  # fmt: skip
    assert {name: asked.headers.get(name) for name in expected} == expected
    assert "x" not in asked.headers


@pytest.mark.parametrize(
    ("reply", "reason", "detail"),
    [
        (Reply(500, b"no such\nplayer"), Reason.HANDLER_FAILED, "HTTP 500: no such player"),
        (Reply(404, b""), Reason.HANDLER_FAILED, "HTTP 404: (nothing was said)"),
        (
            Reply(503, b"busy", {"retry-after": "7"}),
            Reason.HANDLER_FAILED_TRANSIENT,
            "HTTP 503, Retry-After: 7: busy",
        ),
        (Reply(429, b"busy"), Reason.HANDLER_FAILED_TRANSIENT, "HTTP 429: busy"),
        (Reply(200, b"<html>"), Reason.RESULT_INVALID, "what the server said is no JSON: "),
        (Reply(200, b"[" + b" " * 2_000 + b"]"), Reason.RESULT_TOO_LARGE, "the server said 2002 bytes"),
        (Reply(200, b"x" * 200_000), Reason.RESULT_TOO_LARGE, "the answer was cut short"),
        (Reply(200, b"12", says=4), Reason.RESULT_TOO_LARGE, "the answer was cut short"),
    ],
    ids=lambda value: f"{value.status}-{len(value.body)}" if isinstance(value, Reply) else "",
)
async def test_what_a_server_answers(
    tmp_path: Path, server: HttpServer, reply: Reply, reason: Reason, detail: str
) -> None:
    found = await answered(tmp_path, server, reply)
    assert ended(found)[0] == reason.value
    assert ended(found)[1].startswith(detail)


async def test_an_empty_answer_is_null_and_text_is_text(tmp_path: Path, server: HttpServer) -> None:
    assert (await answered(tmp_path, server, Reply(204, b""))).value_json == b"null"
    (tmp_path / "2").mkdir()
    assert (
        await answered(tmp_path / "2", server, Reply(200, b"done\n"), result="text")
    ).value_json == b'"done"'


async def test_redirects_are_not_followed(tmp_path: Path, server: HttpServer) -> None:
    found = await answered(
        tmp_path, server, Reply(307, b"", {"location": f"http://127.0.0.1:{server.port}/other"})
    )
    assert ended(found)[1].startswith("HTTP 307 (redirects are not followed)")
    assert [asked.path for asked in server.asked] == ["/do"]


@pytest.mark.parametrize(
    ("effect", "reason"), [("once", Reason.OUTCOME_UNKNOWN), ("idempotent", Reason.HANDLER_FAILED_TRANSIENT)]
)
async def test_a_server_that_breaks_off_may_have_done_it(
    tmp_path: Path, server: HttpServer, effect: str, reason: Reason
) -> None:
    assert ended(await answered(tmp_path, server, Reply(cut=True), effect=effect))[0] == reason.value


async def test_a_server_that_is_not_there_did_nothing(tmp_path: Path) -> None:
    async with offering(
        tmp_path, post=f"http://127.9.9.9:{free_port()}/"
    ) as engine:  # loopback is all of 127/8
        reason, detail = ended(await done(engine))
    assert reason == Reason.HANDLER_FAILED_TRANSIENT.value
    assert "cannot connect: " in detail


@pytest.mark.parametrize(
    ("effect", "timeout", "cancelled"),
    [("once", Reason.OUTCOME_UNKNOWN, Reason.OUTCOME_UNKNOWN),
     ("idempotent", Reason.HANDLER_TIMEOUT, Reason.RUN_CANCELLED)],
)  # fmt: skip
async def test_a_server_goes_on_when_its_run_is_interrupted(
    tmp_path: Path, server: HttpServer, effect: str, timeout: Reason, cancelled: Reason
) -> None:
    server.reply = Reply(after_s=4.0)
    async with offering(tmp_path, post=f"http://127.0.0.1:{server.port}/", effect=effect) as engine:
        assert ended(await done(engine, 1_000))[0] == timeout.value
        engine.offer(run_id="r2", timeout_ms=60_000)
        with trio.fail_after(10):
            while len(server.asked) < 2:
                await trio.sleep(0.01)
        engine.executor.cancel(Cancel("r2", 1))
        found = await engine.next_report()
        assert isinstance(found, Result)
        assert ended(found)[0] == cancelled.value


# -- a game server's console

KICK: dict[str, Any] = {
    "parameters": {"player": "string", "reason": {"type": "string", "default": "no reason"}},
    "rcon": {"line": "kick {player} {reason:text}"},
}


async def test_a_console_is_told_a_line_and_its_answer_is_the_result(
    tmp_path: Path, console: RconServer
) -> None:
    console.answer = "Kicked Bob"
    async with offering(tmp_path, console.port, **KICK) as engine:
        assert (await done(engine, player="Bob")).value_json == b'"Kicked Bob"'
        assert (await engine.result(run_id="r2", args_json=b'{"player":"Al","reason":"be nice"}')).completed
    assert console.commands == ["kick Bob no reason", "kick Al be nice"]


@pytest.mark.parametrize(
    "arguments",
    [{"player": "Bob\nop Bob"}, {"player": "Bob; op Bob"}, {"player": "@a"}, {"player": "Bob x"},
     {"player": "Bob", "reason": "bye\nop Bob"}, {"player": "Bob", "reason": "bye; op Bob"}],
    ids=str,
)  # fmt: skip
async def test_no_argument_is_a_second_command(
    tmp_path: Path, console: RconServer, arguments: dict[str, str]
) -> None:
    async with offering(tmp_path, console.port, **KICK) as engine:
        assert ended(await done(engine, **arguments))[0] == Reason.ARGUMENTS_INVALID.value
    assert console.commands == []


async def test_an_answer_that_is_not_expected_is_a_failure(tmp_path: Path, console: RconServer) -> None:
    console.answer = "No player was found"
    rcon = {**KICK["rcon"], "expect": "kicked"}
    async with offering(tmp_path, console.port, **{**KICK, "rcon": rcon}) as engine:
        found = await done(engine, player="Bob")
    assert ended(found) == (Reason.HANDLER_FAILED.value, "the console says: No player was found")


async def test_a_console_of_its_own_with_a_password_of_its_own(tmp_path: Path, console: RconServer) -> None:
    secret = tmp_path / "password"
    secret.write_text(f"{PASSWORD}\n")
    secret.chmod(0o600)
    rcon = {"line": "list", "port": console.port, "password_file": str(secret)}
    async with offering(tmp_path, rcon=rcon) as engine:
        assert (await done(engine)).completed
    assert console.commands == ["list"]


async def test_a_wrong_password_is_no_matter_of_time(tmp_path: Path, console: RconServer) -> None:
    console.password = "another"
    async with offering(tmp_path, console.port, **KICK) as engine:
        found = await done(engine, player="Bob")
    assert ended(found) == (Reason.HANDLER_FAILED.value, "the server refused the password")


async def test_a_console_that_is_not_there_did_nothing(tmp_path: Path) -> None:
    async with offering(tmp_path, free_port(), **KICK) as engine:
        assert ended(await done(engine, player="Bob"))[0] == Reason.HANDLER_FAILED_TRANSIENT.value


@pytest.mark.parametrize(
    ("effect", "reason"), [("once", Reason.OUTCOME_UNKNOWN), ("idempotent", Reason.HANDLER_FAILED_TRANSIENT)]
)
async def test_a_console_that_ends_in_the_middle_may_have_done_it(
    tmp_path: Path, console: RconServer, effect: str, reason: Reason
) -> None:
    def stop(line: str) -> str:
        raise ConnectionAbortedError

    console.on_command = stop
    async with offering(tmp_path, console.port, effect=effect, **KICK) as engine:
        assert ended(await done(engine, player="Bob"))[0] == reason.value
    assert console.commands == ["kick Bob no reason"]
