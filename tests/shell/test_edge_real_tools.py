"""HAProxy before the proxy, and OpenSSL's client through it: what others' programs make of PROXY headers and SNI."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import ip_network
from pathlib import Path

import pytest
import trio
from tests.support.edge_harness import Harness, Peer, running_edge
from tests.support.tls import Authority, Issued
from tests.support.tools import tool

from fairlead.proxy.edge.settings import Certificate, ListenerTls, RouteConfig, RoutingConfig
from fairlead.runtime.tls import server_handshake

LOOPBACK = (ip_network("127.0.0.1/32"),)
CLIENT = "127.0.0.2"  # who is no forwarder


async def head_echo(peer: Peer) -> None:
    while head := await peer.read_head():
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(head), head))


@asynccontextmanager
async def haproxy(h: Harness, folder: Path, option: str) -> AsyncIterator[int]:
    """Forwards to the edge; its port."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = int(sock.getsockname()[1])
    (folder / "haproxy.cfg").write_text(
        "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 20s\n  timeout server 20s\n"
        f"listen front\n  bind 127.0.0.1:{port}\n  server edge 127.0.0.1:{h.edge.port('front')} {option}\n"
    )
    argv = [str(tool("haproxy")), "-db", "-f", str(folder / "haproxy.cfg")]
    process = await trio.lowlevel.open_process(argv, stderr=subprocess.DEVNULL)
    try:
        for _ in range(500):
            if process.poll() is not None:
                raise AssertionError("haproxy did not start")
            try:
                (await h.world.connect_tcp("127.0.0.1", port)).close()
                break
            except OSError:
                await trio.sleep(0.01)
        yield port
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def said(argv: list[str], stdin: bytes = b"") -> str:
    done = await trio.run_process(argv, stdin=stdin, capture_stdout=True, capture_stderr=True, check=False)
    return (done.stdout + done.stderr).decode()


@pytest.mark.parametrize(
    "option", ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c,unique-id"]
)
async def test_haproxy_says_who_the_client_is(tmp_path: Path, option: str) -> None:
    async with running_edge(head_echo, listener={"proxy_protocol_from": LOOPBACK}) as h:
        async with haproxy(h, tmp_path, option) as port:
            argv = [str(tool("curl")), "-sS", "--interface", CLIENT, f"http://127.0.0.1:{port}/"]
            assert f"x-forwarded-for: {CLIENT}\r\n" in (await said(argv)).lower()


@pytest.mark.parametrize("option", ["send-proxy", "send-proxy-v2"])
async def test_tls_is_ended_behind_the_header(tmp_path: Path, option: str) -> None:
    authority = Authority(tmp_path)
    issued = authority.issue("one", "127.0.0.1")
    listener = {"proxy_protocol_from": LOOPBACK, "tls": ListenerTls(("one",))}
    certificates = (Certificate("one", str(issued.chain), str(issued.key)),)
    async with running_edge(head_echo, listener=listener, certificates=certificates) as h:
        async with haproxy(h, tmp_path, option) as port:
            argv = [str(tool("curl")), "-sS", "--interface", CLIENT, "--cacert", str(authority.file)]
            told = (await said([*argv, f"https://127.0.0.1:{port}/"])).lower()
            assert f"x-forwarded-for: {CLIENT}\r\n" in told
            assert "x-forwarded-proto: https\r\n" in told


async def test_curl_may_send_a_proxy_header_only_from_a_listed_network() -> None:
    async with running_edge(head_echo, listener={"proxy_protocol_from": LOOPBACK}) as h:
        argv = [str(tool("curl")), "-sS", "--haproxy-protocol", f"http://127.0.0.1:{h.edge.port('front')}/"]
        assert "x-forwarded-for: 127.0.0.1\r\n" in (await said(argv)).lower()
        refused = await said([*argv, "--interface", CLIENT])
        assert '"status":400' in refused
        assert h.upstreams[0].accepted == 1


def secure(issued: Issued, text: bytes) -> partial[object]:
    return partial(_secure, issued=issued, text=text)


async def _secure(peer: Peer, issued: Issued, text: bytes) -> None:
    stream = await server_handshake(peer.stream, issued.serving())
    try:
        asked = await stream.receive_some(100)
        await stream.send_all(text + asked)
    finally:
        stream.close()


async def test_openssl_reaches_the_server_it_names_and_sees_its_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    names = ("zero.example", "one.example")
    scripts = [secure(authority.issue(name, name), name.encode() + b" got ") for name in names]
    routing = RoutingConfig(routes=(RouteConfig("one", host="one.example", backends=("b1",)),))
    async with running_edge(*scripts, kind="tcp", listener={"sni": "require"}, routing=routing) as h:
        for name in names:
            argv = [
                str(tool("openssl")), "s_client", "-connect", f"127.0.0.1:{h.edge.port('front')}", "-servername", name,
                "-verify_hostname", name, "-verify_return_error", "-CAfile", str(authority.file), "-quiet",
            ]  # fmt: skip
            assert f"{name} got hello" in await said(argv, b"hello")
