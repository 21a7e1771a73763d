"""One HTTP request to where somebody else told us to send it, without letting them send us inside.

The last step of a callback, on the proxy (a run's end to its `callback_url`) and on a node without a link (a result
to its proxy); and how the keys of a token's issuer are fetched. Needs httpcore, which the `proxy` extra installs.

Invariants: what is dialled is the numeric address that was judged, so a name that changes its mind between the two
gains nothing; redirects are not followed; TLS is verified against the name in the URL; the whole of it, resolving
included, has one deadline; at most `RESPONSE_BYTES_MAX` of an answer are read; a connection serves one request.
"""

from __future__ import annotations

import functools
import os
import ssl
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

import httpcore
import trio

from fairlead.protocol.reasons import Reason, Refused
from fairlead.runtime.addresses import Destination, canonical_hosts, dialled_address_problem, read_url
from fairlead.runtime.posting import Answer, NotConnected, OutboundFailed
from fairlead.runtime.streams import ByteStream
from fairlead.runtime.version import SOFTWARE
from fairlead.runtime.world import World

RESPONSE_BYTES_MAX: Final = 64 * 1024
_ADDRESSES_TRIED_MAX: Final = 4
_READ_BYTES: Final = 16 * 1024
_BODY_MARGIN_S: Final = (
    0.05  # an answer whose body does not end is taken just before the deadline, not lost to it
)


class Outbound:
    """The client. Built once by a composition root; `post` and `get` may be called by many tasks at once."""

    def __init__(
        self, world: World, allowed_hosts: Iterable[str], ssl_context: ssl.SSLContext | None = None
    ) -> None:
        """`allowed_hosts`: names and addresses that may be loopback or private."""
        self._world = world
        self.allowed_hosts: Collection[str] = canonical_hosts(allowed_hosts)
        self._ssl_context = ssl_context or _verifying_context()

    async def post(
        self, url: str, headers: Sequence[tuple[str, str]], body: bytes, timeout_s: float
    ) -> Answer:
        """Send, and read the answer. Raises Refused where it may not be sent, OutboundFailed where none came."""
        headers = [("content-length", str(len(body))), ("content-type", "application/json"), *headers]
        return await self._send("POST", url, headers, body, timeout_s)

    async def get(self, url: str, headers: Sequence[tuple[str, str]], timeout_s: float) -> Answer:
        """Fetch, under the same rules."""
        return await self._send("GET", url, headers, b"", timeout_s)

    async def _send(
        self, method: str, url: str, headers: Sequence[tuple[str, str]], body: bytes, timeout_s: float
    ) -> Answer:
        destination = read_url(url)
        if isinstance(destination, str):
            raise Refused(Reason.CALLBACK_URL_REFUSED, f"the URL {destination}")
        try:
            with trio.fail_after(timeout_s):
                return await self._exchange(method, destination, headers, body)
        except trio.TooSlowError:
            raise OutboundFailed(f"no answer within {timeout_s:g} s") from None
        except OSError as error:
            raise NotConnected(f"cannot connect: {error.strerror or error}") from error
        except (httpcore.NetworkError, httpcore.ProtocolError, trio.BrokenResourceError) as error:
            raise OutboundFailed(f"the connection broke: {error}" if str(error) else "it broke") from error

    async def _exchange(
        self, method: str, destination: Destination, headers: Sequence[tuple[str, str]], body: bytes
    ) -> Answer:
        url = httpcore.URL(
            scheme=destination.scheme, host=destination.host, port=destination.port, target=destination.target
        )
        request = httpcore.Request(
            method, url,
            headers=[
                ("host", destination.authority), ("user-agent", SOFTWARE), ("connection", "close"), *headers,
            ],
            content=body or None,
        )  # fmt: skip
        backend = _GuardedBackend(self._world, destination.host in self.allowed_hosts)
        connection = httpcore.AsyncHTTPConnection(url.origin, self._ssl_context, network_backend=backend)
        try:
            response = await connection.handle_async_request(request)
            named = tuple(
                (name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in response.headers
            )
            return Answer(response.status, named, *await _read_body(response))
        finally:
            backend.close()


async def _read_body(response: httpcore.Response) -> tuple[bytes, bool]:
    """As much as there is, within the deadline, and whether that is all: the status stands already, whatever becomes of
    the rest."""
    body, is_whole = bytearray(), False
    with trio.move_on_at(trio.current_effective_deadline() - _BODY_MARGIN_S):
        try:
            async for part in response.aiter_stream():
                body += part
            is_whole = True
        except (httpcore.NetworkError, httpcore.ProtocolError):
            pass  # cut short, as `Answer.body` says
    return bytes(body), is_whole


class _GuardedBackend(httpcore.AsyncNetworkBackend):
    """Connects to judged addresses only. Owns the connection that it makes."""

    def __init__(self, world: World, is_allowed: bool) -> None:
        self._world, self._is_allowed = world, is_allowed
        self._streams: list[ByteStream] = []

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """The deadline is the caller's, around everything."""
        found = await self._world.resolve(host, port)
        judged = {address: dialled_address_problem(address, self._is_allowed) for address in found}
        permitted = [address for address, why in judged.items() if not why]
        if not permitted:
            raise Refused(
                Reason.CALLBACK_ADDRESS_REFUSED,
                f"{host} is {'; '.join(f'{address}, {why}' for address, why in list(judged.items())[:4])}",
            )
        failure: OSError | None = None
        for address in permitted[:_ADDRESSES_TRIED_MAX]:
            try:
                stream = await self._world.connect_tcp(address, port)
            except OSError as error:
                failure = error
                continue
            self._streams.append(stream)
            return _PlainStream(stream)
        assert failure is not None
        raise failure

    def close(self) -> None:
        for stream in self._streams:
            stream.close()


class _PlainStream(httpcore.AsyncNetworkStream):
    """httpcore's shape over a ByteStream, which gives so many bytes and no more. Deadlines are the caller's."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._left = RESPONSE_BYTES_MAX

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._left == 0:
            raise httpcore.ReadError(f"the answer is longer than {RESPONSE_BYTES_MAX} bytes")
        try:
            data = await self._receive(min(max_bytes, _READ_BYTES, self._left))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise httpcore.ReadError(str(error.__cause__ or error)) from error
        self._left -= len(data)
        return data

    async def _receive(self, max_bytes: int) -> bytes:
        return await self._stream.receive_some(max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            await self._stream.send_all(buffer)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise httpcore.WriteError(str(error)) from error

    async def aclose(self) -> None:
        self._stream.close()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        secured = trio.SSLStream(
            _Transport(self._stream), ssl_context, server_hostname=server_hostname, https_compatible=True
        )
        try:
            await secured.do_handshake()
        except trio.BrokenResourceError as error:
            raise httpcore.ConnectError(f"TLS: {error.__cause__ or error}") from error
        return _SecuredStream(secured, self._stream)

    def get_extra_info(self, info: str) -> Any:
        return None


class _SecuredStream(_PlainStream):
    """The same with TLS on it."""

    def __init__(self, secured: trio.SSLStream[_Transport], stream: ByteStream) -> None:
        super().__init__(stream)  # closing takes the transport away: a goodbye could wait for the peer
        self._secured = secured

    async def _receive(self, max_bytes: int) -> bytes:
        return bytes(await self._secured.receive_some(max_bytes))

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            await self._secured.send_all(buffer)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise httpcore.WriteError(f"TLS: {error.__cause__ or error}") from error


class _Transport(trio.abc.Stream):
    """What trio's TLS takes, over a ByteStream."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await self._stream.receive_some(max_bytes or _READ_BYTES)

    async def aclose(self) -> None:
        self._stream.close()
        await trio.lowlevel.checkpoint()


@functools.cache
def _verifying_context() -> ssl.SSLContext:
    """The system's authorities; where it has none, those that come with httpcore. Once a process: it takes 20 ms."""
    context = ssl.create_default_context()
    paths = ssl.get_default_verify_paths()
    folder_is_empty = paths.capath is None or not os.listdir(paths.capath)
    if paths.cafile is None and folder_is_empty:
        import certifi

        context.load_verify_locations(certifi.where())
    return context
