"""Programs that the world runs: real processes, their output, their children, and their ends."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import trio

from fairlead.runtime.program import Program, ProgramEnd
from fairlead.runtime.world import RealWorld

ENVIRON = {"PATH": "/usr/bin:/bin"}
# Writes the numbers of itself and of a child that outlives it where it can, then waits.
FAMILY = """
import os, signal, subprocess, sys, time
if {deaf}:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", {child!r}])
with open({path!r} + ".new", "w") as file:
    file.write(f"{{os.getpid()}} {{child.pid}}")
os.rename({path!r} + ".new", {path!r})
{then}
"""
DEAF_CHILD = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


async def run(
    *arguments: str, given: bytes = b"", output_bytes_max: int = 1_000, grace_s: float = 0.2
) -> ProgramEnd:
    program = Program(arguments, ENVIRON, given, output_bytes_max, 100, grace_s)
    with trio.fail_after(30):
        return await RealWorld().run_program(program)


async def python(code: str, **more: object) -> ProgramEnd:
    return await run(sys.executable, "-c", code, **more)  # type: ignore[arg-type]


def family(path: Path, then: str, *, deaf: bool = False, child: str = DEAF_CHILD) -> str:
    return FAMILY.format(path=str(path), then=then, deaf=deaf, child=child)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in ("Z", "X")


async def pids_in(path: Path) -> list[int]:
    with trio.fail_after(30):
        while not path.exists():
            await trio.sleep(0.01)
    return [int(part) for part in path.read_text().split()]


async def gone(pids: list[int]) -> None:
    """What is nobody's any more is reaped by the system in its own time."""
    with trio.fail_after(10):
        while any(is_running(pid) for pid in pids):
            await trio.sleep(0.01)


async def test_it_is_given_its_input_and_says_something() -> None:
    ended = await run("cat", given=b'{"a":1}\n')
    assert (ended.status, ended.output, ended.output_bytes, ended.how) == (
        0,
        b'{"a":1}\n',
        8,
        "exit status 0",
    )


async def test_it_has_the_environment_it_was_given_and_nothing_of_ours() -> None:
    ended = await run("env")
    assert ended.output == b"PATH=/usr/bin:/bin\n"


async def test_no_shell_reads_its_arguments() -> None:
    assert (await run("echo", "$HOME; ls *")).output == b"$HOME; ls *\n"


async def test_a_huge_output_is_read_to_its_end_and_its_beginning_kept() -> None:
    ended = await python("import sys; sys.stdout.write('x' * 20_000_000)", output_bytes_max=10)
    assert (ended.status, ended.output, ended.output_bytes) == (0, b"x" * 10, 20_000_000)


async def test_of_what_it_complains_the_end_is_kept() -> None:
    ended = await python("import sys; sys.stderr.write('x' * 1_000_000 + 'the end'); sys.exit(3)")
    assert (ended.status, len(ended.errors), ended.errors[-7:]) == (3, 100, b"the end")


async def test_it_need_not_read_what_it_is_given() -> None:
    assert (await run("true", given=b"x" * 1_000_000)).status == 0


@pytest.mark.parametrize(("number", "how"), [(9, "SIGKILL"), (15, "SIGTERM"), (11, "SIGSEGV")])
async def test_a_signal_that_ended_it_is_named(number: int, how: str) -> None:
    ended = await python(f"import os; os.kill(os.getpid(), {number})")
    assert (ended.status, ended.how) == (-number, f"killed by {how}")


async def test_signals_are_not_ignored_because_we_ignore_them() -> None:
    ended = await python("import signal; print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)")
    assert ended.output == b"True\n"


@pytest.mark.parametrize(
    "arguments", [("/no/such/program",), ("/etc/passwd",), ("/tmp",)], ids=["missing", "no program", "folder"]
)
async def test_what_cannot_be_started_raises(arguments: tuple[str, ...]) -> None:
    with pytest.raises(OSError, match=arguments[0]):
        await run(*arguments)


async def test_children_that_it_leaves_behind_are_killed_and_hold_up_nothing(tmp_path: Path) -> None:
    """They have its standard output open, whose end we wait for."""
    ended = await python(family(tmp_path / "pids", "print('done')"))
    assert (ended.status, ended.output) == (0, b"done\n")
    await gone(await pids_in(tmp_path / "pids"))


@pytest.mark.parametrize("deaf", [False, True], ids=["that listens", "that ignores SIGTERM"])
async def test_cancelled_a_program_ends_with_its_children(tmp_path: Path, deaf: bool) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(python, family(tmp_path / "pids", "time.sleep(600)", deaf=deaf))
        pids = await pids_in(tmp_path / "pids")
        assert all(is_running(pid) for pid in pids)
        nursery.cancel_scope.cancel()
    await gone(pids)


async def test_cancelled_a_program_is_asked_first(tmp_path: Path) -> None:
    asked, ready = tmp_path / "asked", tmp_path / "ready"
    then = (
        f"signal.signal(signal.SIGTERM, lambda *_: (open({str(asked)!r}, 'w').close(), sys.exit(0)))\n"
        f"open({str(ready)!r}, 'w').close()\ntime.sleep(600)"
    )
    code = family(tmp_path / "pids", then)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: python(code, grace_s=20.0))
        await pids_in(tmp_path / "pids")
        with trio.fail_after(30):
            while not ready.exists():
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert asked.exists()
    await gone(await pids_in(tmp_path / "pids"))


async def test_a_stopped_program_is_killed_too(tmp_path: Path) -> None:
    """SIGTERM waits for one that is stopped (SIGSTOP); SIGKILL does not."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(python, family(tmp_path / "pids", "os.kill(os.getpid(), signal.SIGSTOP)"))
        pids = await pids_in(tmp_path / "pids")
        nursery.cancel_scope.cancel()
    await gone(pids)


def children() -> set[str]:
    """Processes whose parent this one is, zombies among them."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = stat.read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if parent == str(os.getpid()):
            found.add(stat.parent.name)
    return found


async def test_nothing_is_left_of_what_ended() -> None:
    """No zombies, no descriptors."""
    await run("true")
    before, others = len(os.listdir("/proc/self/fd")), children()
    for _ in range(20):
        await run("true")
    assert len(os.listdir("/proc/self/fd")) == before
    assert children() <= others, "the process that runs these tests may have children of its own"


async def test_a_descendant_with_the_pipe_and_a_session_of_its_own_holds_up_nothing(tmp_path: Path) -> None:
    """Out of our reach, as the page says; the run ends all the same, a moment later."""
    ready = str(tmp_path / "ready")
    escaped = f"import os, time; os.setsid(); open({ready!r}, 'w').close(); time.sleep(600)"
    ended = await python(
        family(tmp_path / "pids", f"while not os.path.exists({ready!r}): time.sleep(0.01)", child=escaped)
    )
    _, pid = await pids_in(tmp_path / "pids")
    assert ended.status == 0
    assert is_running(pid)
    os.kill(pid, signal.SIGKILL)
