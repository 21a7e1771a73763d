"""TLS with real processes: towards clients, towards backends, renewed and refused; and every reason of it.

Judged as in test_reject_reasons.py. One proxy before one demo node, and before a server of the test that speaks TLS.
"""

from __future__ import annotations

import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.support.ctl import ctl
from tests.support.processes import Answer, Fleet, free_port, http_call, to_toml, until
from tests.support.provocations import OF_TLS, Provocations, refused
from tests.support.tls import Authority, Issued

from fairlead.protocol.reasons import Reason

pytestmark = pytest.mark.e2e

_here = Provocations()
provokes, _provoked = _here.provokes, _here.reasons


@pytest.fixture(autouse=True)
def _remember(request: pytest.FixtureRequest) -> None:
    _here.tests_run.add(request.node.name)


class Backend:
    """An HTTPS server whose certificate can be changed."""

    def __init__(self, issued: Issued) -> None:
        self.show(issued)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = b"over tls"
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def finish_request(self, request: socket.socket, address: object) -> None:
                try:
                    with outer.context.wrap_socket(request, server_side=True) as secured:
                        Handler(secured, address, self)
                except (ssl.SSLError, OSError):
                    pass  # The proxy did not like it, as some tests want.

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def show(self, issued: Issued) -> None:
        self.issued, self.context = issued, issued.serving()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Secure:
    """The fleet, its ports, and who vouches for whom."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder)
        self.one, self.two = (
            self.authority.issue("one", "one.test"),
            self.authority.issue("two", "*.two.test"),
        )
        self.backend = Backend(self.authority.issue("backend", "127.0.0.1"))
        self.ports = {name: free_port() for name in ("secure", "strict", "tofu", "ca", "plain", "sni")}
        self.fleet = Fleet(
            folder / "fleet",
            nodes=("lobby-1",),
            proxy={
                "limits": {"head_timeout_s": 1},
                "routing": {"backend_down_ms": 100},
                "rate_limits": {"handshake_per_ip_max": 0},
                "tls": {"reload_interval_s": 1, "pins_file": str(folder / "pins.json")},
            },
        )
        known = {
            "strict": {"tls": "strict", "tls_fingerprint_sha256": self.backend.issued.sha256},
            "tofu": {"tls": "tofu"},
            "ca": {"tls": "ca", "tls_ca_file": str(self.authority.file)},
        }
        backends = [
            {"id": name, "host": host, "port": self.backend.port, **trust}
            for host, (name, trust) in zip(
                ("127.0.0.1", "localhost", "LOCALHOST"), known.items(), strict=True
            )
        ]
        backends[2]["tls_server_name"] = "127.0.0.1"
        backends.append(
            {"id": "plain", "host": "localhost", "port": self.fleet.app_http["lobby-1"], "tls": "tofu"}
        )
        listeners = [
            {
                "name": name,
                "kind": "http",
                "port": self.ports[name],
                "backends": [name],
                "default_backend_id": name,
            }
            for name in ("strict", "tofu", "ca", "plain")
        ]
        listeners.append(
            {"name": "secure", "kind": "http", "port": self.ports["secure"], "backends": ["lobby-1"],
             "tls_certificates": ["one", "two"]}
        )  # fmt: skip
        listeners.append(
            {
                "name": "sni",
                "kind": "tcp",
                "port": self.ports["sni"],
                "sni": "require",
                "backends": ["lobby-1"],
            }
        )
        certificates = [
            {"id": each.chain.stem, "chain_file": str(each.chain), "key_file": str(each.key)}
            for each in (self.one, self.two)
        ]
        path = folder / "fleet" / "proxy.toml"
        more = {"listeners": listeners, "backends": backends, "certificates": certificates}
        path.write_text(path.read_text() + "\n" + to_toml(more))

    def dial(self, name: str = "one.test") -> ssl.SSLSocket:
        sock = socket.create_connection(("127.0.0.1", self.ports["secure"]), timeout=10)
        return self.authority.trusting().wrap_socket(sock, server_hostname=name)

    def get(self, listener: str) -> Answer:
        return http_call(self.ports[listener], "GET", "/")

    def close(self) -> None:
        self.fleet.close()
        self.backend.close()


def ask(sock: ssl.SSLSocket) -> bytes:
    sock.sendall(b"GET /whoami HTTP/1.1\r\nHost: one.test\r\n\r\n")
    return sock.recv(65_536)


def shown(sock: ssl.SSLSocket) -> str:
    import hashlib

    return hashlib.sha256(sock.getpeercert(True) or b"").hexdigest()


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    with closing(Secure(tmp_path_factory.mktemp("tls"))) as made:
        made.fleet.start()
        yield made


def test_clients_are_served_by_name_and_certificates_are_renewed_under_them(secure: Secure) -> None:
    with secure.dial() as old, secure.dial("a.two.test") as other:
        assert (shown(old), shown(other)) == (secure.one.sha256, secure.two.sha256)
        assert ask(old).startswith(b"HTTP/1.1 200 ")
        renewed = secure.authority.issue("one", "one.test")

        def is_renewed() -> bool:
            with secure.dial() as new:
                return shown(new) == renewed.sha256

        until(is_renewed, "the renewed certificate is shown", more=secure.fleet.tails)
        assert ask(old).startswith(b"HTTP/1.1 200 ")
        again = secure.authority.issue("one", "one.test")
        secure.fleet.signal("proxy", signal.SIGHUP)
        with provokes(secure.fleet, Reason.TLS_CERTIFICATE_UNUSABLE):
            until(lambda: again.sha256[:16] in secure.fleet.processes["proxy"].log(), "reloaded")
            again.key.write_text("nothing")
        health = secure.fleet.ops("GET", "/health").json()
        assert health["status"] == "DEGRADED"
        assert str(again.key) in health["checks"]["certificates"]["detail"]
        with secure.dial() as kept:
            assert shown(kept) == again.sha256
        secure.authority.issue("one", "one.test")
        until(
            lambda: secure.fleet.ops("GET", "/health").json()["checks"]["certificates"]["state"] == "ok",
            "well",
        )
        assert ask(old).startswith(b"HTTP/1.1 200 ")
    assert secure.fleet.metric("fairlead_edge_tls_certificate_seconds_left", certificate="one") > 86_400
    assert {each["id"] for each in secure.fleet.ops("GET", "/status").json()["certificates"]} == {
        "one",
        "two",
    }


def test_what_is_no_handshake_and_what_is_half_of_one(secure: Secure) -> None:
    with provokes(secure.fleet, Reason.TLS_HANDSHAKE_FAILED):
        with socket.create_connection(("127.0.0.1", secure.ports["secure"]), timeout=10) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: one.test\r\n\r\n")
            assert sock.recv(100)[:1] in (b"", b"\x15"), "an end or an alert, and no plain text"
    with provokes(secure.fleet, Reason.TLS_HANDSHAKE_TIMEOUT):
        with socket.create_connection(("127.0.0.1", secure.ports["secure"]), timeout=10) as sock:
            sock.sendall(b"\x16\x03\x01\x02\x00\x01")
            with pytest.raises(ConnectionResetError):
                sock.recv(100)
    with provokes(secure.fleet, Reason.TLS_HELLO_MALFORMED):
        with socket.create_connection(("127.0.0.1", secure.ports["sni"]), timeout=10) as sock:
            sock.sendall(b"\x16\x03\x01\x00\x04\x02\x00\x00\x00")
            with pytest.raises(ConnectionResetError):
                sock.recv(100)


def test_backends_are_trusted_as_it_is_said_of_each(secure: Secure) -> None:
    first = secure.backend.issued
    for name in ("strict", "tofu", "ca"):
        answer = secure.get(name)
        assert (answer.status, answer.body) == (200, b"over tls"), name
    with provokes(secure.fleet, Reason.BACKEND_TLS_FAILED):
        refused(secure.get("plain"), Reason.BACKEND_TLS_FAILED)
    second = secure.authority.issue("backend", "127.0.0.1")
    secure.backend.show(second)
    assert secure.fleet.stop("proxy") == 0
    secure.fleet.restart("proxy")  # its pooled connections go, its pins do not
    secure.fleet.wait_ready()
    with provokes(secure.fleet, Reason.BACKEND_CERTIFICATE_REFUSED):
        refused(secure.get("strict"), Reason.BACKEND_CERTIFICATE_REFUSED)
    with provokes(secure.fleet, Reason.BACKEND_CERTIFICATE_CHANGED):
        refused(secure.get("tofu"), Reason.BACKEND_CERTIFICATE_CHANGED)
    assert secure.get("ca").status == 200
    assert (
        secure.fleet.ops("GET", "/health").json()["checks"]["pins"]["reason"] == "BACKEND_CERTIFICATE_CHANGED"
    )
    listed = ctl(secure.fleet, "pins", "list")
    assert first.sha256 in listed.out
    assert second.sha256 in listed.out
    path = "/api/backends/tofu/pin/accept"
    with provokes(secure.fleet, Reason.PIN_NOT_WAITING):
        refused(secure.fleet.ops("POST", path, {"sha256": first.sha256}), Reason.PIN_NOT_WAITING)
    accepted = ctl(secure.fleet, "pins", "accept", "tofu", second.sha256)
    assert accepted.status == 0, accepted
    until(lambda: secure.get("tofu").status == 200, "the accepted one is taken")
    trail = secure.fleet.ops("GET", "/api/ops/reliability/audit?limit=20").json()["events"]
    assert [each["detail"] for each in trail if each["action"] == "backend_pin_accepted"] == [
        {"sha256": second.sha256}
    ]


def test_every_reason_of_tls_was_provoked(request: pytest.FixtureRequest) -> None:
    ours = {item.name for item in request.session.items if item.path == Path(__file__)}
    if ours != _here.tests_run:
        pytest.skip("only with the whole file")
    missing = sorted(each.value for each in OF_TLS - _provoked)
    assert not missing, f"not provoked: {', '.join(missing)}"
