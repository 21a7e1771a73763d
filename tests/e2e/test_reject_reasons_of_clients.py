"""Every reason of clients' traffic that a socket can provoke and test_reject_reasons.py does not.

Judged as there. Each fleet is small: one proxy before one demo node, configured for what is provoked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.config_text import to_toml
from tests.support.processes import Fleet, free_port
from tests.support.provocations import OF_CLIENTS, Provocations, refused
from tests.support.raw_peer import dial

from fairlead.protocol.reasons import Reason

pytestmark = pytest.mark.e2e

_here = Provocations()
provokes, _provoked = _here.provokes, _here.reasons


@pytest.fixture(autouse=True)
def _remember(request: pytest.FixtureRequest) -> None:
    _here.tests_run.add(request.node.name)


@pytest.fixture(scope="module")
def picky(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Lets few in: some addresses never, everybody together slowly."""
    made = Fleet(
        tmp_path_factory.mktemp("picky"),
        nodes=("lobby-1",),
        proxy={
            "access": {"deny": ["127.0.66.0/24"]},
            "rate_limits": {
                "joins_per_s": 1, "joins_burst": 3, "joins_grace_millis": 0, "uncounted": ["127.0.0.1/32"],
            },
        },
    )  # fmt: skip
    with closing(made.start()):
        yield made


def answer_to(fleet: Fleet, source: str) -> bytes:
    with dial(fleet.http, source) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        parts = []
        while part := sock.recv(65_536):
            parts.append(part)
        return b"".join(parts)


def test_an_address_on_the_deny_list(picky: Fleet) -> None:
    with provokes(picky, Reason.ADDRESS_DENIED):
        answer = answer_to(picky, "127.0.66.6")
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"ADDRESS_DENIED" in answer


def test_everybody_together_comes_too_fast(picky: Fleet) -> None:
    answers = []
    with provokes(picky, Reason.JOIN_RATE_LIMIT):
        while not answers or answers[-1].startswith(b"HTTP/1.1 200 "):
            answers.append(answer_to(picky, f"127.0.70.{len(answers) + 1}"))
            assert len(answers) < 50
    assert answers[-1].startswith(b"HTTP/1.1 503 ")
    assert b"JOIN_RATE_LIMIT" in answers[-1]
    assert b"retry-after: " in answers[-1]


@pytest.fixture(scope="module")
def disabled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(
        tmp_path_factory.mktemp("disabled"),
        nodes=("lobby-1",),
        proxy={"dispatch": {"rollout_mode": "disabled"}},
    )
    with closing(made.start()):
        yield made


def test_dispatch_that_is_disabled_for_everybody(disabled: Fleet) -> None:
    with provokes(disabled, Reason.DISPATCH_DISABLED, serves=lambda: disabled.client().status == 200):
        answer = refused(
            disabled.ops("POST", "/api/dispatch", {"command": "demo:echo"}), Reason.DISPATCH_DISABLED
        )
    assert "retry-after" in answer.headers


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Fleet, int]]:
    """A proxy behind a load balancer at 127.0.77.1, and the port where it is expected."""
    made, port = Fleet(tmp_path_factory.mktemp("balanced"), nodes=("lobby-1",)), free_port()
    path = made.folder / "proxy.toml"
    forwarded = {"name": "lb", "kind": "tcp", "port": port, "proxy_protocol_from": ["127.0.77.1/32"]}
    path.write_text(path.read_text() + "\n" + to_toml({"listeners": [forwarded]}))
    with closing(made.start()):
        yield made, port


def test_a_load_balancer_that_does_not_say_for_whom_it_speaks(balanced: tuple[Fleet, int]) -> None:
    fleet, port = balanced
    with provokes(fleet, Reason.PROXY_HEADER_MALFORMED), dial(port, "127.0.77.1") as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            sock.recv(100)


def test_somebody_else_who_says_for_whom_they_speak(balanced: tuple[Fleet, int]) -> None:
    fleet, port = balanced
    with provokes(fleet, Reason.PROXY_HEADER_UNTRUSTED), dial(port, "127.0.0.1") as sock:
        sock.sendall(b"PROXY TCP4 127.0.66.6 192.0.2.1 4000 80\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            sock.recv(100)


def test_every_reason_of_clients_was_provoked(request: pytest.FixtureRequest) -> None:
    ours = {item.name for item in request.session.items if item.path == Path(__file__)}
    if ours != _here.tests_run:
        pytest.skip("only with the whole file")
    missing = sorted(each.value for each in OF_CLIENTS - _provoked)
    assert not missing, f"not provoked: {', '.join(missing)}"
