"""TLS on the clients' ports: certificates by name, versions, ALPN, client certificates, reload, and hostile hellos."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.support.edge_harness import OK, Harness, Peer, always_ok, running_edge
from tests.support.tls import Authority, Issued

from fairlead.proxy.edge.settings import Certificate, EdgeLimits, ListenerTls, TlsFiles
from fairlead.runtime.tls import TlsStream, client_handshake

PARSED = replace(EdgeLimits(), http_head_timeout_s=0.3)


class Fleet:
    """An edge with TLS, and the authority behind it."""

    def __init__(self, edge: Harness, authority: Authority) -> None:
        self.edge, self.authority = edge, authority

    async def connect(self, name: str = "one.test", context: ssl.SSLContext | None = None) -> TlsStream:
        peer = await self.edge.connect()
        return await client_handshake(peer.stream, context or self.authority.trusting(), name)

    async def until_counted(self, reason: str, times: int = 1) -> None:
        while self.edge.rejects.get(reason, 0) < times:
            await trio.sleep(0.005)


def certificate(issued: Issued, *names: str) -> Certificate:
    return Certificate(issued.chain.stem, str(issued.chain), str(issued.key), names)


@asynccontextmanager
async def fleet(
    folder: Path, *certificates: Certificate, authority: Authority, script: Any = always_ok, kind: str = "http",
    limits: EdgeLimits | None = None, interval_s: float = 600.0, **tls: Any,
) -> AsyncIterator[Fleet]:  # fmt: skip
    listener = {"tls": ListenerTls(tuple(each.id for each in certificates), **tls)}
    files = TlsFiles(reload_interval_s=interval_s, pins_file=str(folder / "pins.json"))
    async with running_edge(
        script, kind=kind, listener=listener, certificates=certificates, tls_files=files, limits=limits
    ) as edge:
        yield Fleet(edge, authority)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def shown(tls: TlsStream) -> str:
    import hashlib

    found = tls.peer_certificate()
    assert found is not None
    return hashlib.sha256(found).hexdigest()


async def test_a_request_over_tls_says_so_to_the_backend(tmp_path: Path, authority: Authority) -> None:
    heads: list[bytes] = []

    async def script(peer: Peer) -> None:
        while head := await peer.read_head():
            heads.append(head)
            await peer.send(OK)

    one = certificate(authority.issue("one", "one.test"))
    async with fleet(tmp_path, one, authority=authority, script=script) as run:
        context = authority.trusting()
        context.set_alpn_protocols(["h2", "http/1.1"])
        tls = await run.connect(context=context)
        assert tls.alpn == "http/1.1"
        assert tls.version == "TLSv1.3"
        peer = Peer(tls)
        for _ in range(3):
            answer = await peer.get("/", "X-Client-Cert-Subject: CN=root\r\nX-Forwarded-Proto: http\r\n")
            assert (answer.status, answer.body) == (200, b"ok")
        tls.close()
        assert all(b"\r\nx-forwarded-proto: https\r\n" in head for head in heads)
        assert not any(b"client-cert" in head.lower() for head in heads), heads


async def test_curl_is_served(tmp_path: Path, authority: Authority) -> None:
    one = certificate(authority.issue("one", "one.test"))
    async with fleet(tmp_path, one, authority=authority) as run:
        port = run.edge.edge.port("front")
        done = await trio.run_process(
            ["curl", "-sS", "--cacert", str(authority.file), "--connect-to", f"one.test:443:127.0.0.1:{port}",
             "-w", "%{http_code} %{ssl_verify_result}", "https://one.test/"],
            capture_stdout=True, check=False,
        )  # fmt: skip
        assert done.stdout == b"ok200 0"


async def test_the_certificate_is_chosen_by_name(tmp_path: Path, authority: Authority) -> None:
    one = authority.issue("one", "one.test")
    wild = authority.issue("wild", "*.wild.test")
    exact = authority.issue("exact", "a.wild.test")
    listed = authority.issue("listed", "not-this.test")
    async with fleet(
        tmp_path, certificate(one), certificate(wild), certificate(exact), certificate(listed, "Listed.test"),
        authority=authority,
    ) as run:  # fmt: skip
        context = authority.trusting()
        context.check_hostname = False
        for name, expected in (
            ("one.test", one), ("ONE.test", one), ("b.wild.test", wild), ("a.wild.test", exact),
            ("a.b.wild.test", one), ("wild.test", one), ("listed.test", listed), ("not-this.test", one),
            ("unknown.test", one), (None, one),
        ):  # fmt: skip
            peer = await run.edge.connect()
            tls = await client_handshake(peer.stream, context, name)
            assert shown(tls) == expected.sha256, name
            tls.close()


@pytest.mark.parametrize("least", ["1.2", "1.3"])
async def test_versions_below_the_least_are_refused(tmp_path: Path, authority: Authority, least: str) -> None:
    one = certificate(authority.issue("one", "one.test"))
    async with fleet(tmp_path, one, authority=authority, min_version=least) as run:
        done = await trio.run_process(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{run.edge.edge.port('front')}",
             "-tls1_1", "-cipher", "ALL@SECLEVEL=0", "-brief"],
            capture_stdout=True, capture_stderr=True, check=False,
        )  # fmt: skip
        assert done.returncode != 0
        await run.until_counted("TLS_HANDSHAKE_FAILED")
        context = authority.trusting()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        if least == "1.2":
            assert (await run.connect(context=context)).version == "TLSv1.2"
        else:
            with pytest.raises(trio.BrokenResourceError, match="protocol version"):
                await run.connect(context=context)


async def test_a_client_may_be_asked_for_a_certificate(tmp_path: Path, authority: Authority) -> None:
    heads: list[bytes] = []

    async def script(peer: Peer) -> None:
        while head := await peer.read_head():
            heads.append(head)
            await peer.send(OK)

    one = certificate(authority.issue("one", "one.test"))
    clients, strangers = Authority(tmp_path, "clients"), Authority(tmp_path, "strangers")
    alice, mallory = clients.issue("alice", subject="älice, 50%\r\nX-Evil: 1"), strangers.issue("mallory")
    required = {"client_certificates": "required", "client_ca_file": str(clients.file)}
    async with fleet(tmp_path, one, authority=authority, script=script, **required) as run:
        context = authority.trusting()
        context.load_cert_chain(alice.chain, alice.key)
        peer = Peer(await run.connect(context=context))
        assert (
            await peer.get(extra="X-Client-Cert-Subject: CN=root\r\nX_Client_Cert_Sha256: 0\r\n")
        ).status == 200
        assert f"\r\nx-client-cert-sha256: {alice.sha256}\r\n".encode() in heads[0]
        assert b"\r\nx-client-cert-subject: CN=%C3%A4lice, 50%25%0D%0AX-Evil: 1\r\n" in heads[0]
        assert heads[0].lower().count(b"client-cert") == 2
        assert b"client_cert" not in heads[0].lower()
        for number, given in enumerate((None, mallory), 1):
            context = authority.trusting()
            if given is not None:
                context.load_cert_chain(given.chain, given.key)
            with pytest.raises(
                trio.BrokenResourceError
            ):  # TLS 1.3: with the first read, for the client was done
                await Peer(await run.connect(context=context)).get()
            await run.until_counted("TLS_HANDSHAKE_FAILED", number)
        assert any("showed no certificate" in line for line in run.edge.sink.lines)
        assert len(heads) == 1


async def test_an_optional_certificate_may_be_missing_but_not_be_wrong(
    tmp_path: Path, authority: Authority
) -> None:
    one = certificate(authority.issue("one", "one.test"))
    clients, strangers = Authority(tmp_path, "clients"), Authority(tmp_path, "strangers")
    mallory = strangers.issue("mallory")
    optional = {"client_certificates": "optional", "client_ca_file": str(clients.file)}
    async with fleet(tmp_path, one, authority=authority, **optional) as run:
        assert (await Peer(await run.connect()).get()).status == 200
        context = authority.trusting()
        context.load_cert_chain(mallory.chain, mallory.key)
        with pytest.raises(trio.BrokenResourceError):
            await Peer(await run.connect(context=context)).get()
        await run.until_counted("TLS_HANDSHAKE_FAILED")


async def test_certificates_are_renewed_under_a_connection_that_goes_on(
    tmp_path: Path, authority: Authority
) -> None:
    before = authority.issue("one", "one.test")
    async with fleet(tmp_path, certificate(before), authority=authority, interval_s=0.02) as run:
        old = await run.connect()
        assert shown(old) == before.sha256
        after = authority.issue("one", "one.test")
        while shown(new := await run.connect()) == before.sha256:
            new.close()
            await trio.sleep(0.01)
        assert shown(new) == after.sha256
        assert (await Peer(old).get()).status == 200
        assert (await Peer(new).get()).status == 200


async def test_what_cannot_be_used_changes_nothing_and_is_told_once(
    tmp_path: Path, authority: Authority
) -> None:
    good, other = authority.issue("one", "one.test"), authority.issue("two", "two.test")
    async with fleet(
        tmp_path, certificate(good), certificate(other), authority=authority, interval_s=0.02
    ) as run:
        certificates = run.edge.edge.certificates
        authority.issue("two", "two.test")  # good by itself, and not taken over without the rest
        good.key.chmod(0o644)
        await run.until_counted("TLS_CERTIFICATE_UNUSABLE")
        assert "lets others read it" in certificates.problem
        await trio.sleep(0.1)
        first = run.edge.rejects["TLS_CERTIFICATE_UNUSABLE"]
        await trio.sleep(0.1)
        assert run.edge.rejects["TLS_CERTIFICATE_UNUSABLE"] == first, "told once, not at each look"
        context = authority.trusting()
        assert shown(await run.connect("two.test", context)) == other.sha256
        assert [each.reason for each in certificates.notes()] == ["TLS_CERTIFICATE_UNUSABLE"]
        for spoil in ("", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
            good.key.chmod(0o600)
            good.chain.write_text(spoil)
            assert not await run.edge.edge.reload_certificates()
            assert str(good.chain) in certificates.problem
        stranger = authority.issue("stranger", "one.test")
        os.replace(stranger.chain, good.chain)
        assert not await run.edge.edge.reload_certificates()
        assert "key values mismatch" in certificates.problem
        authority.issue("one", "one.test", days=-0.1)
        assert not await run.edge.edge.reload_certificates()
        assert "has run out" in certificates.problem
        assert shown(await run.connect()) == good.sha256
        soon = authority.issue("one", "one.test", days=3)
        assert await run.edge.edge.reload_certificates()
        assert certificates.problem == ""
        assert shown(await run.connect()) == soon.sha256
        assert [each.reason for each in certificates.notes()] == ["CERTIFICATE_EXPIRES"]
        assert (
            'edge_tls_certificate_seconds_left{certificate="one"} 2' in run.edge.observer.metrics.exposition()
        )


async def test_an_edge_without_its_certificates_does_not_start(tmp_path: Path, authority: Authority) -> None:
    from fairlead.protocol.reasons import Reason, Refused

    missing = Certificate("one", str(tmp_path / "none.pem"), str(tmp_path / "none.key"))
    with pytest.raises(BaseExceptionGroup) as caught:
        async with fleet(tmp_path, missing, authority=authority):
            pass
    found = caught.value.split(Refused)[0]
    assert found is not None
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, Refused)
    assert found.reason is Reason.TLS_CERTIFICATE_UNUSABLE
    assert "none.pem" in found.detail


@pytest.mark.parametrize(
    ("garbage", "told"),
    [
        (b"GET / HTTP/1.1\r\nHost: one.test\r\n\r\n", "plain HTTP"),
        (b"\x00\x01\x02\x03" * 100, "not TLS"),
        (b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", "length too short"),
        (b"\x16\x03\x01\x00\x10", "in the middle"),
    ],
)
async def test_garbage_ends_with_its_reason(
    tmp_path: Path, authority: Authority, garbage: bytes, told: str
) -> None:
    one = certificate(authority.issue("one", "one.test"))
    async with fleet(tmp_path, one, authority=authority) as run:
        peer = await run.edge.connect()
        await peer.send(garbage)
        await peer.stream.send_eof()
        await run.until_counted("TLS_HANDSHAKE_FAILED")
        answer = await peer.read_to_end()
        assert not answer or answer[0] == 21, "an alert, and nothing else"
        assert any(told in line for line in run.edge.sink.lines), run.edge.sink.lines
        await run.edge.until_sessions(0)
        assert run.edge.edge.admission.handshaking == 0
        assert (await Peer(await run.connect()).get()).status == 200


async def test_a_half_handshake_ends_at_its_deadline_and_they_are_bounded(
    tmp_path: Path, authority: Authority
) -> None:
    one = certificate(authority.issue("one", "one.test"))
    limits = replace(PARSED, client_handshake_concurrent_max=2)
    async with fleet(tmp_path, one, authority=authority, limits=limits) as run:
        silent, half = await run.edge.connect(), await run.edge.connect()
        await half.send(b"\x16\x03\x01\x02\x00\x01")
        while run.edge.edge.admission.handshaking < 2:
            await trio.sleep(0.005)
        third = await run.edge.connect()
        with pytest.raises(trio.BrokenResourceError):
            await third.read_to_end()
        assert run.edge.rejects["CLIENT_HANDSHAKE_LIMIT"] == 1
        for each in (silent, half):
            with pytest.raises(trio.BrokenResourceError):
                await each.read_to_end()
        assert run.edge.rejects["TLS_HANDSHAKE_TIMEOUT"] == 2
        gone = await run.edge.connect()
        gone.stream.close()
        await run.until_counted("CLIENT_GONE")
        assert run.edge.edge.admission.live == 0


async def test_a_reload_may_name_other_certificates(tmp_path: Path, authority: Authority) -> None:
    one, two = (
        certificate(authority.issue("one", "one.test")),
        certificate(authority.issue("two", "two.test")),
    )
    async with fleet(tmp_path, one, authority=authority) as run:
        edge = run.edge.edge
        before = edge._config
        listener = before.listeners[0]
        named = replace(listener, tls=replace(listener.tls, certificates=("one", "two"), min_version="1.3"))
        wanted = replace(before, listeners=(named,), certificates=(one, two))
        assert await edge.reload_certificates(wanted)
        assert (await run.connect("two.test")).version == "TLSv1.3"
        gone = replace(before, listeners=(replace(listener, tls=ListenerTls()),), certificates=(two,))
        assert not await edge.reload_certificates(gone), "a listener goes on to speak TLS until a restart"
        assert "front shows one" in edge.certificates.problem
        assert (await Peer(await run.connect("two.test")).get()).status == 200
        edge.ask_certificates(wanted)
        while edge.certificates.problem:
            await trio.sleep(0.005)


async def test_a_proxy_header_stands_before_the_handshake(tmp_path: Path, authority: Authority) -> None:
    from ipaddress import ip_network

    heads: list[bytes] = []

    async def script(peer: Peer) -> None:
        heads.append(await peer.read_head())
        await peer.send(OK)

    one = certificate(authority.issue("one", "one.test"))
    listener = {"tls": ListenerTls(("one",)), "proxy_protocol_from": (ip_network("127.0.0.0/8"),)}
    async with running_edge(script, listener=listener, certificates=(one,)) as edge:
        peer = await edge.connect()
        await peer.send(b"PROXY TCP4 203.0.113.9 192.0.2.1 4711 443\r\n")
        tls = await client_handshake(peer.stream, authority.trusting(), "one.test")
        assert (await Peer(tls).get()).status == 200
        assert b"\r\nx-forwarded-for: 203.0.113.9\r\nx-forwarded-proto: https\r\n" in heads[0]


async def test_tcp_behind_tls_ends_each_way_by_itself(tmp_path: Path, authority: Authority) -> None:
    async def script(peer: Peer) -> None:
        asked = await peer.read_to_end()
        await peer.send(asked[::-1])
        await peer.stream.send_eof()

    one = certificate(authority.issue("one", "one.test"))
    async with fleet(tmp_path, one, authority=authority, script=script, kind="tcp") as run:
        tls = await run.connect()
        bulk = bytes(range(256)) * 4_000
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                await tls.send_all(bulk)
                await tls.send_eof()

            nursery.start_soon(send)
            assert await Peer(tls).read_to_end() == bulk[::-1]
        assert tls.ended_cleanly


async def test_a_client_of_tcp_that_is_cut_off_is_no_end_for_the_backend(
    tmp_path: Path, authority: Authority
) -> None:
    ended: list[str] = []

    async def script(peer: Peer) -> None:
        try:
            await peer.read_to_end()
            ended.append("whole")
        except trio.BrokenResourceError:
            ended.append("cut off")

    one = certificate(authority.issue("one", "one.test"))
    async with fleet(tmp_path, one, authority=authority, script=script, kind="tcp") as run:
        tls = await run.connect()
        await tls.send_all(b"half of it")
        below = tls._stream
        await below.send_eof()  # the transport ends, and TLS did not
        while not ended:
            await trio.sleep(0.005)
        assert ended == ["cut off"]
