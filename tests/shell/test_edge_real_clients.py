"""Other people's clients and servers on both sides of the edge: curl, Python's http.client, nginx."""

from __future__ import annotations

import http.client
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from tests.support.edge_harness import Harness, Peer, running_edge
from tests.support.tools import tool


def backend_port(h: Harness) -> int:
    """Of the backend that nobody listens for yet."""
    return int(h.edge.status()["listeners"][0]["backends"][0]["address"].rpartition(":")[2])


async def curl(*arguments: str, stdin: bytes = b"") -> bytes:
    done = await trio.run_process(
        ["curl", "-sS", "--max-time", "10", *arguments],
        stdin=stdin, capture_stdout=True, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    return done.stdout


async def counting(peer: Peer) -> None:
    """Answers with what came, method and length of the body; chunked, with a trailer."""
    while head := await peer.read_head():
        lowered = head.lower()
        if b"expect: 100-continue" in lowered:
            await peer.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
        size = 0
        if b"transfer-encoding: chunked" in lowered:
            size = len(await peer.read_chunked())
        elif b"content-length: " in lowered:
            size = len(await peer.read_exactly(int(lowered.split(b"content-length: ")[1].split()[0])))
        body = b"%b %d" % (head.split()[0], size)
        await peer.send(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n%x\r\n%b\r\n0\r\nX-Sum: 7\r\n\r\n"
            % (len(body), body)
        )


async def test_curl_with_expectations_trailers_and_old_versions() -> None:
    async with running_edge(counting) as h:
        url = f"http://127.0.0.1:{h.edge.port('front')}/"
        large = b"z" * 2_000_000
        asked = ("-H", "Expect: 100-continue")
        assert await curl("-T", "-", *asked, url, stdin=large) == b"PUT 2000000"
        assert await curl("-X", "POST", "--data-binary", "@-", *asked, url, stdin=large) == b"POST 2000000"
        assert await curl("-0", "-d", "abcde", url) == b"POST 5"
        with_trailer = await curl("-D", "-", "-H", "TE: trailers", "-H", "Connection: TE", url)
        assert b"X-Sum: 7" in with_trailer
        assert b"X-Sum: 7" not in await curl("-D", "-", url)
        verbose = await curl("-v", url, url, url)
        assert verbose.lower().count(b"re-using") >= 2 or verbose.lower().count(b"reusing") >= 2
        assert h.upstreams[0].accepted == 1
        assert h.rejects == {}


async def test_http_client_of_the_standard_library() -> None:
    def talk(port: int) -> list[object]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        found: list[object] = []
        for method, body, chunked in (
            ("GET", None, False), ("HEAD", None, False), ("POST", b"abc", False),
            ("PUT", iter([b"ab", b"c" * 100_000]), True), ("DELETE", None, False),
        ):  # fmt: skip
            connection.request(method, "/x", body, encode_chunked=chunked)
            response = connection.getresponse()
            found.append((response.status, response.read()))
        connection.close()
        return found

    async def answering(peer: Peer) -> None:
        while head := await peer.read_head():
            body = b""
            if b"transfer-encoding: chunked" in head.lower():
                body = await peer.read_chunked()
            elif b"content-length: " in head.lower():
                body = await peer.read_exactly(int(head.lower().split(b"content-length: ")[1].split()[0]))
            text = b"" if head.startswith(b"HEAD") else b"%d" % len(body)
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text))

    async with running_edge(answering) as h:
        found = await trio.to_thread.run_sync(talk, h.edge.port("front"))
        assert found == [(200, b"0"), (200, b""), (200, b"3"), (200, b"100002"), (200, b"0")]


@asynccontextmanager
async def nginx(tmp_path: Path, port: int) -> AsyncIterator[None]:
    """A real server behind the edge."""
    (tmp_path / "file").write_bytes(bytes(range(256)) * 4_000)
    (tmp_path / "nginx.conf").write_text(
        f"""
        daemon off; master_process off; pid {tmp_path}/pid; error_log stderr crit; worker_processes 1;
        events {{ worker_connections 64; }}
        http {{
            access_log off; keepalive_requests 5; client_max_body_size 10k; root {tmp_path};
            client_body_temp_path {tmp_path}/a; proxy_temp_path {tmp_path}/b; fastcgi_temp_path {tmp_path}/c;
            uwsgi_temp_path {tmp_path}/d; scgi_temp_path {tmp_path}/e;
            server {{
                listen 127.0.0.1:{port};
                location /told {{ return 200 "$http_x_forwarded_for $http_host $http_connection $http_traceparent"; }}
                location /none {{ return 204; }}
            }}
        }}
        """
    )
    async with trio.open_nursery() as nursery:
        command = [str(tool("nginx")), "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
        process = await nursery.start(lambda task_status: trio.run_process(
            command, check=False, task_status=task_status, deliver_cancel=_kill, stderr=subprocess.DEVNULL
        ))  # fmt: skip
        with trio.fail_after(5):
            while True:
                try:
                    stream = await trio.open_tcp_stream("127.0.0.1", port)
                    break
                except OSError:
                    await trio.sleep(0.01)
            await stream.aclose()
        yield
        process.kill()


async def _kill(process: trio.Process) -> None:
    process.kill()


async def test_nginx_behind_the_edge(tmp_path: Path) -> None:
    async with running_edge(None) as h, nginx(tmp_path, backend_port(h)):
        url = f"http://127.0.0.1:{h.edge.port('front')}"
        whole = (tmp_path / "file").read_bytes()
        assert await curl(f"{url}/file") == whole
        assert await curl("-r", "10-19", f"{url}/file") == whole[10:20]
        assert (
            await curl("-I", "-o", "/dev/null", "-w", "%{http_code} %{size_download}", f"{url}/file")
            == b"200 0"
        )
        assert await curl("-o", "/dev/null", "-w", "%{http_code}", f"{url}/none") == b"204"
        told = (await curl(f"{url}/told")).split(b" ")
        assert told[:2] == [b"127.0.0.1", url.removeprefix("http://").encode()]
        assert told[-1].startswith(b"00-")
        client = await h.connect()
        for _ in range(12):  # more than one of its connections is good for
            assert (await client.get("/none")).status == 204
        refused = await curl(
            "-o", "/dev/null", "-w", "%{http_code}", "-H", "Expect: 100-continue",
            "--data-binary", "@-", f"{url}/file", stdin=bytes(100_000),
        )  # fmt: skip
        assert refused == b"413"  # before it took the body
        assert (await client.get("/none")).status == 204
        assert h.rejects == {}
