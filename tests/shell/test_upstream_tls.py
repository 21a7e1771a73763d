"""TLS towards backends: trust by fingerprint, by first sight, and by an authority, good and bad."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.support.edge_harness import OK, Harness, Peer, Script, always_ok, running_edge
from tests.support.tls import Authority, Issued

from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.edge.settings import EdgeLimits, HealthCheck, TlsFiles
from fairlead.runtime.tls import server_handshake


class Shown:
    """What a backend shows: can be changed while it runs."""

    def __init__(self, issued: Issued) -> None:
        self.issued = issued
        self.names: list[str] = []
        self.handshakes = 0

    def over(self, script: Script) -> Script:
        async def secured(peer: Peer) -> None:
            context = self.issued.serving()

            def note(_tls: object, name: str | None, _context: object) -> None:
                self.names.append(name or "")

            context.sni_callback = note
            tls = await server_handshake(peer.stream, context)
            self.handshakes += 1
            await script(Peer(tls))

        return secured


@asynccontextmanager
async def edge_before(
    shown: Shown, folder: Path, *, script: Script = always_ok, kind: str = "http",
    limits: EdgeLimits | None = None, **backend: Any,
) -> AsyncIterator[Harness]:  # fmt: skip
    files = TlsFiles(pins_file=str(folder / "kept" / "pins.json"))
    async with running_edge(
        shown.over(script), kind=kind, backend=backend, tls_files=files, limits=limits
    ) as edge:
        yield edge


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def status_of(edge: Harness) -> tuple[int, str]:
    peer = await edge.connect()
    answer = await peer.get()
    peer.stream.close()
    return answer.status, "" if answer.body == b"ok" else json.loads(answer.body)["reason"]


async def test_strict_takes_that_certificate_and_no_other(tmp_path: Path, authority: Authority) -> None:
    shown = Shown(authority.issue("backend", "unrelated.test"))
    trust = {"tls": "strict", "tls_fingerprint_sha256": shown.issued.sha256, "tls_server_name": "lobby.test"}
    async with edge_before(shown, tmp_path, **trust) as edge:
        peer = await edge.connect()
        for _ in range(5):
            assert (await peer.get()).body == b"ok"
        assert shown.handshakes == 1, "a connection with TLS goes back to the pool as any other"
        assert shown.names == ["lobby.test"]
    shown.issued = authority.issue("backend", "unrelated.test")
    async with edge_before(shown, tmp_path, **trust) as edge:
        assert await status_of(edge) == (502, "BACKEND_CERTIFICATE_REFUSED")
        assert edge.rejects == {**edge.rejects, "BACKEND_CERTIFICATE_REFUSED": 1}


async def test_the_first_certificate_is_kept_and_a_change_waits_for_an_operator(
    tmp_path: Path, authority: Authority
) -> None:
    first = authority.issue("backend")
    shown = Shown(first)
    async with edge_before(shown, tmp_path, tls="tofu") as edge:
        assert (await status_of(edge))[0] == 200
    second = shown.issued = authority.issue("backend")
    limits = EdgeLimits(backend_down_s=0.0)
    async with edge_before(
        shown, tmp_path, tls="tofu", limits=limits
    ) as edge:  # another process: it is on the disk
        known = edge.edge.upstream_tls
        assert await status_of(edge) == (502, "BACKEND_CERTIFICATE_CHANGED")
        assert known.waiting() == ["b0"]
        row = known.rows()[0]
        assert (row["sha256"], row["waiting_sha256"]) == (first.sha256, second.sha256)
        for wrong in (first.sha256, "0" * 64):
            with pytest.raises(Refused) as caught:
                await known.accept("b0", wrong, "key:1")
            assert caught.value.reason is Reason.PIN_NOT_WAITING
        await known.accept("b0", second.sha256, "key:1")
        assert (await status_of(edge))[0] == 200
        assert known.waiting() == []
    async with edge_before(shown, tmp_path, tls="tofu") as edge:
        assert edge.edge.upstream_tls.rows()[0]["accepted_by"] == "key:1"
        assert (await status_of(edge))[0] == 200
        assert (tmp_path / "kept" / "pins.json").stat().st_mode & 0o777 == 0o600


async def test_a_first_certificate_that_cannot_be_kept_is_not_trusted(
    tmp_path: Path, authority: Authority
) -> None:
    (tmp_path / "kept").mkdir()
    shown = Shown(authority.issue("backend"))
    async with edge_before(shown, tmp_path, tls="tofu", limits=EdgeLimits(backend_down_s=0.0)) as edge:
        (tmp_path / "kept").rmdir()
        (tmp_path / "kept").write_text("no folder")
        assert await status_of(edge) == (502, "BACKEND_TLS_FAILED")
        assert edge.edge.upstream_tls.rows()[0]["sha256"] == ""
        (tmp_path / "kept").unlink()
        assert (await status_of(edge))[0] == 200


async def test_pins_that_cannot_be_read_start_nothing(tmp_path: Path, authority: Authority) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "pins.json").write_text("{")
    with pytest.raises(BaseExceptionGroup) as caught:
        async with edge_before(Shown(authority.issue("backend")), tmp_path, tls="tofu"):
            pass
    assert caught.group_contains(Refused, match="holds no pins")


async def test_an_authority_vouches_for_the_name(tmp_path: Path, authority: Authority) -> None:
    shown = Shown(authority.issue("backend", "lobby.test"))
    trust = {"tls": "ca", "tls_ca_file": str(authority.file)}
    limits = EdgeLimits(backend_down_s=0.0)
    async with edge_before(shown, tmp_path, **trust, tls_server_name="lobby.test", limits=limits) as edge:
        assert (await status_of(edge))[0] == 200
    async with edge_before(shown, tmp_path, **trust, limits=limits) as edge:  # its host: 127.0.0.1
        assert await status_of(edge) == (502, "BACKEND_CERTIFICATE_REFUSED")
        shown.issued = authority.issue("backend", "127.0.0.1")
        assert (await status_of(edge))[0] == 200
    shown.issued = authority.issue("backend", "lobby.test", days=-0.1)
    async with edge_before(shown, tmp_path, **trust, tls_server_name="lobby.test") as edge:
        assert await status_of(edge) == (502, "BACKEND_CERTIFICATE_REFUSED")
        assert any("certificate has expired" in line for line in edge.sink.lines)
    shown.issued = Authority(tmp_path, "another").issue("backend", "lobby.test")
    async with edge_before(shown, tmp_path, **trust, tls_server_name="lobby.test") as edge:
        assert await status_of(edge) == (502, "BACKEND_CERTIFICATE_REFUSED")


async def test_a_backend_that_speaks_no_tls(tmp_path: Path, authority: Authority) -> None:
    async def plain(peer: Peer) -> None:
        await peer.stream.receive_some(65536)
        await peer.send(OK)

    async with running_edge(
        plain, backend={"tls": "tofu"}, tls_files=TlsFiles(pins_file=str(tmp_path / "p"))
    ) as edge:
        assert await status_of(edge) == (502, "BACKEND_TLS_FAILED")
        assert any("that is not TLS" in line for line in edge.sink.lines)


async def test_a_backend_that_says_nothing_ends_with_the_deadline(tmp_path: Path) -> None:
    async def silent(peer: Peer) -> None:
        await trio.sleep_forever()

    limits = replace(EdgeLimits(), upstream_connect_timeout_s=0.1)
    files = TlsFiles(pins_file=str(tmp_path / "p"))
    async with running_edge(silent, backend={"tls": "tofu"}, tls_files=files, limits=limits) as edge:
        assert await status_of(edge) == (502, "BACKEND_UNREACHABLE")


async def test_a_body_that_ends_with_a_cut_is_not_taken_for_whole(
    tmp_path: Path, authority: Authority
) -> None:
    """RFC 9112, 9.8: without a length and without close_notify nobody knows whether that was all."""

    async def cut(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhalf of it")
        await peer.stream._stream.send_eof()  # type: ignore[attr-defined]
        await trio.sleep_forever()

    async def whole(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it")
        await peer.stream.send_eof()
        await trio.sleep_forever()

    shown = Shown(authority.issue("backend"))
    async with edge_before(shown, tmp_path, tls="tofu", script=whole) as edge:
        assert (await (await edge.connect()).get()).body == b"all of it"
    async with edge_before(shown, tmp_path, tls="tofu", script=cut) as edge:
        peer = await edge.connect()
        await peer.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        with pytest.raises(trio.BrokenResourceError):
            await peer.read_to_end()
        assert edge.rejects["BACKEND_CLOSED_EARLY"] == 1


async def test_a_pooled_connection_that_the_backend_has_ended_is_not_used(
    tmp_path: Path, authority: Authority
) -> None:
    async def once(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(OK)
        peer.stream.close()  # without having said so

    shown = Shown(authority.issue("backend"))
    async with edge_before(shown, tmp_path, tls="tofu", script=once) as edge:
        peer = await edge.connect()
        for _ in range(3):
            assert (await peer.get()).body == b"ok"
            await trio.sleep(0.02)
        assert shown.handshakes == 3


async def test_tcp_goes_through_tls_to_the_backend(tmp_path: Path, authority: Authority) -> None:
    async def reverse(peer: Peer) -> None:
        asked = await peer.read_to_end()
        await peer.send(asked[::-1])
        await peer.stream.send_eof()
        await peer.read_to_end()

    shown = Shown(authority.issue("backend"))
    async with edge_before(shown, tmp_path, tls="tofu", script=reverse, kind="tcp") as edge:
        peer = await edge.connect()
        bulk = bytes(range(256)) * 2_000
        await peer.send(bulk)
        await peer.stream.send_eof()
        assert await peer.read_to_end() == bulk[::-1]


async def test_a_backend_with_tls_is_asked_whether_it_is_well_over_tls(
    tmp_path: Path, authority: Authority
) -> None:
    asked: list[bytes] = []

    async def script(peer: Peer) -> None:
        while head := await peer.read_head():
            asked.append(head)
            await peer.send(OK)

    shown = Shown(authority.issue("backend"))
    check = HealthCheck(path="/well", interval_s=0.03)
    async with edge_before(shown, tmp_path, script=script, tls="tofu", check=check) as edge:
        while len(asked) < 3:
            await trio.sleep(0.01)
        assert all(head.startswith(b"GET /well ") for head in asked)
        assert (await status_of(edge))[0] == 200
        shown.issued = authority.issue("backend")
        while not edge.edge.upstream_tls.waiting():
            await trio.sleep(0.01)
