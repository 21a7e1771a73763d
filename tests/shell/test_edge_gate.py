"""Edge and gate together, and PROXY headers towards servers without one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from tests.support.edge_harness import OK, Peer, Script
from tests.support.gate_harness import NODE, GateHarness, node_key, running_gate

from fairlead.protocol.proxy_header import UNIQUE_ID, parse, write_v2
from fairlead.proxy.edge.listen import Edge
from fairlead.proxy.edge.proofs import NodeProof, Proofs
from fairlead.proxy.edge.settings import Backend, EdgeConfig, EdgeLimits, HealthCheck, ListenerConfig


@asynccontextmanager
async def edge_before(
    h: GateHarness,
    port: int,
    kind: str = "http",
    limits: EdgeLimits | None = None,
    known: bool = True,
    **backend: Any,
) -> AsyncIterator[Edge]:
    """An edge that leads to `port`; `known`: the gate's run was told."""
    config = EdgeConfig(
        (ListenerConfig("front", kind, "127.0.0.1", 0),),  # type: ignore[arg-type]
        (Backend("b", "127.0.0.1", port, NODE, **backend),),
        limits or EdgeLimits(),
    )
    proof = NodeProof(node_key(), h.gate.boot) if known else NodeProof(node_key())
    edge = Edge(config, h.world, h.observer, lambda _: "ONLINE", proofs=Proofs(h.world, {NODE: proof}.get))
    async with trio.open_nursery() as nursery:
        await nursery.start(_run, edge)
        try:
            yield edge
        finally:
            nursery.cancel_scope.cancel()


async def _run(edge: Edge, task_status: trio.TaskStatus[None]) -> None:
    await edge.run(task_status=task_status)


async def client_of(h: GateHarness, edge: Edge) -> Peer:
    stream = await h.world.connect_tcp("127.0.0.1", edge.port("front"))
    h.opened.append(stream)
    return Peer(stream)


async def echo(peer: Peer) -> None:
    while data := await peer.stream.receive_some(65536):
        await peer.send(data)


async def head_echo(peer: Peer) -> None:
    """Answers with the head it got."""
    while head := await peer.read_head():
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(head), head))


async def test_clients_share_a_proven_connection_and_are_told_apart() -> None:
    async with running_gate(head_echo, "http") as h, edge_before(h, h.gate.port("g"), gate=True) as edge:
        for _ in range(2):
            client = await client_of(h, edge)
            for _ in range(3):
                answer = await client.get("/a?b", "X-Forwarded-For: 9.9.9.9\r\nx-fairlead-client: forged\r\n")
                assert answer.status == 200
                assert b"\r\nx-forwarded-for: 127.0.0.1\r\n" in answer.body
                assert b"\r\nx-real-ip: 127.0.0.1\r\n" in answer.body
                assert b"fairlead-client" not in answer.body
        assert (h.row["accepted"], h.row["rejected"]) == (1, {})
        assert 'gate_requests_total{gate="g"} 6' in h.observer.metrics.exposition()


async def test_bodies_and_an_absolute_target() -> None:
    async def server(peer: Peer) -> None:
        while head := await peer.read_head():
            assert head.startswith(b"POST /a HTTP/1.1\r\n")
            await peer.read_chunked()
            await peer.send(OK)

    async with running_gate(server, "http") as h, edge_before(h, h.gate.port("g"), gate=True) as edge:
        client = await client_of(h, edge)
        await client.send(
            b"POST http://h/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
        )
        await trio.sleep(0.01)
        await client.send(b"0\r\n\r\n")
        assert (await client.answer()).status == 200
        assert h.row["rejected"] == {}


async def test_a_client_of_tcp_is_proven_by_the_connection() -> None:
    seen: list[bytes] = []

    async def server(peer: Peer) -> None:
        seen.append(await peer.read_until(b"hello"))
        await peer.send(b"x")

    async with running_gate(server, forward="proxy_v2") as h:
        async with edge_before(h, h.gate.port("g"), "tcp", gate=True) as edge:
            client = await client_of(h, edge)
            await client.send(b"hello")
            assert await client.read_exactly(1) == b"x"
            found = parse(seen[0])
            assert isinstance(found, tuple)
            assert found[0].source is not None
            assert found[0].source[0] == "127.0.0.1"
            assert found[0].tlv(UNIQUE_ID) == edge.status()["sessions"][0]["id"].encode()


async def test_a_gate_that_was_just_started_is_no_obstacle_once_its_run_is_known() -> None:
    async with running_gate(head_echo, "http", started_ms_ago=0) as h:
        async with edge_before(h, h.gate.port("g"), gate=True, known=False) as edge:
            answer = await (await client_of(h, edge)).get()
            assert answer.status == 502
            assert h.row["rejected"]["CANNOT_JUDGE"] >= 1
        async with edge_before(h, h.gate.port("g"), gate=True) as edge:
            assert (await (await client_of(h, edge)).get()).status == 200


async def test_a_gate_that_the_proxys_configuration_forgot_answers_for_itself() -> None:
    async with running_gate(head_echo, "http") as h, edge_before(h, h.gate.port("g")) as edge:
        answer = await (await client_of(h, edge)).get()
        assert answer.status == 401  # the gate's own answer to who speaks plain HTTP to it
        assert b"PROXY_TOKEN_REJECTED" in answer.body


@pytest.mark.parametrize("kind", ["tcp", "http"])
async def test_a_check_passes_the_gate(kind: str) -> None:
    check = HealthCheck(path="/health" if kind == "http" else "", interval_s=0.02, fall=1)
    script: Script = head_echo if kind == "http" else echo
    async with running_gate(script, kind) as h:
        async with edge_before(h, h.gate.port("g"), kind, gate=True, check=check):
            while h.row["accepted"] < 3:
                await trio.sleep(0.005)
            assert h.row["rejected"] == {}
            assert not any("unwell" in line for line in h.sink.lines)


V1 = b"PROXY TCP4 127.0.0.1 "


@pytest.mark.parametrize(
    ("kind", "send_proxy", "begins"),
    [
        ("tcp", "v1", V1),
        ("tcp", "v2", write_v2(("127.0.0.1", 1), ("0.0.0.0", 1))[:20]),
        ("http", "v1", b"PROXY UNKNOWN\r\nGET / HTTP/1.1\r\n"),
        ("http", "v2", write_v2(None, None, is_local=True) + b"GET / HTTP/1.1\r\n"),
    ],
)
async def test_a_server_without_a_gate_may_be_told_the_client(
    kind: str, send_proxy: str, begins: bytes
) -> None:
    seen: list[bytes] = []

    async def server(peer: Peer) -> None:
        seen.append(await peer.read_until(b"Host: h\r\n" if kind == "tcp" else b"host: h\r\n"))
        await peer.send(OK)

    async with running_gate(server) as h:
        async with edge_before(h, h.server.listener.port, kind, send_proxy=send_proxy) as edge:
            client = await client_of(h, edge)
            assert (await client.get()).status == 200
            assert seen[0].startswith(begins)
            found = parse(seen[0])
            assert isinstance(found, tuple)
            if kind == "tcp":
                assert found[0].source is not None
                assert seen[0][found[1] :].startswith(b"GET / HTTP/1.1\r\n")
