"""Makes an arrival of a connection: PROXY header, then (on TCP listeners that route by it) a look at the server name.

Stands between admission and a listener's own protocol on the client's journey. What it reads and does not use goes on
as `Arrival.first`.

Invariants: a PROXY header is read from listed networks only, and from those it is required; whom it names is judged
like one who connected himself, before anything else is done for him; from anybody else a header is refused wherever
it can be told from data; what is read is bounded, and so is the time for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

import trio

from fairlead.protocol.proxy_header import ProxyHeader, parse, recognise
from fairlead.protocol.reasons import Reason, Refused, Reject
from fairlead.proxy.edge.address_sets import AddressSet, read_address
from fairlead.proxy.edge.arrival import Arrival
from fairlead.proxy.edge.client_hello import ClientHelloReader, Verdict
from fairlead.proxy.edge.settings import ListenerConfig
from fairlead.runtime.streams import ByteStream

_READ_BYTES: Final = 4096

Judge = Callable[[str], Awaitable[Reject | None]]  # may a client at this address come?


class Arrivals:
    """What stands before the protocol of one listener."""

    def __init__(self, listener: ListenerConfig, timeout_s: float, judge: Judge) -> None:
        self._forwarders = AddressSet(listener.proxy_protocol_from)
        self._sni, self._timeout_s, self._judge = listener.sni, timeout_s, judge
        self.is_plain = not self._forwarders and self._sni == "off"  # nothing stands before the protocol

    def is_forwarder(self, host: str) -> bool:
        """Whether that address speaks for others, and has to say for whom."""
        return bool(self._forwarders) and read_address(host) in self._forwarders

    async def arrive(self, stream: ByteStream) -> Arrival:
        """Raises Refused."""
        arrival = Arrival(stream, stream.peer_host, stream.peer_port)
        is_forwarder = self.is_forwarder(arrival.peer_host)
        if is_forwarder:
            arrival = await self._forwarded(arrival)
        if self._sni != "off":
            arrival = await self._named(arrival, is_forwarder)
        return arrival

    async def _forwarded(self, arrival: Arrival) -> Arrival:
        data = b""
        with trio.move_on_after(self._timeout_s) as scope:
            while (read := parse(data)) is None:
                more = await arrival.stream.receive_some(_READ_BYTES)
                if not more:
                    raise Refused(Reason.PROXY_HEADER_MALFORMED, "the connection ended before the header did")
                data += more
        if scope.cancelled_caught:
            raise Refused(Reason.PROXY_HEADER_MALFORMED, f"no whole header within {self._timeout_s:g} s")
        assert read is not None
        if isinstance(read, Reject):
            raise Refused(read.reason, read.detail)
        header, used = read
        arrival = replace(arrival, first=data[used:], is_forwarded=True)
        if header.source is None:  # the forwarder's own: a health check, or a client it cannot name
            return arrival
        return await self._claimed(arrival, header)

    async def _claimed(self, arrival: Arrival, header: ProxyHeader) -> Arrival:
        assert header.source is not None
        host, port = header.source
        address = read_address(host)
        refused = await self._judge(str(address) if address is not None else host)
        if refused is not None:
            raise Refused(refused.reason, refused.detail)
        return replace(arrival, peer_host=str(address), peer_port=port)

    async def _named(self, arrival: Arrival, is_forwarder: bool) -> Arrival:
        reader = ClientHelloReader()
        verdict = reader.feed(arrival.first)
        with trio.move_on_after(self._timeout_s) as scope:
            while verdict is Verdict.NEED_MORE:
                more = await arrival.stream.receive_some(_READ_BYTES)
                if not more:
                    break
                verdict = reader.feed(more)
        first = reader.raw
        if self._forwarders and not is_forwarder and recognise(first):
            raise Refused(Reason.PROXY_HEADER_UNTRUSTED, "a PROXY header")
        if isinstance(verdict, Reject):
            raise Refused(verdict.reason, verdict.detail)
        if isinstance(verdict, Verdict):
            if self._sni == "require" or (first and verdict is Verdict.NEED_MORE):
                raise Refused(*self._no_hello(verdict, scope.cancelled_caught))
            return replace(arrival, first=first)  # its protocol may let the server speak first
        return replace(
            arrival,
            first=first,
            server_name=verdict.server_name,
            alpn=b",".join(verdict.alpn).decode("latin-1"),
        )

    def _no_hello(self, verdict: Verdict, is_late: bool) -> tuple[Reason, str]:
        if verdict is Verdict.NOT_TLS:
            return Reason.TLS_HELLO_MALFORMED, "not TLS"
        if is_late:
            return Reason.TLS_HANDSHAKE_TIMEOUT, f"no whole hello within {self._timeout_s:g} s"
        return Reason.TLS_HELLO_MALFORMED, "the connection ended before the hello did"


async def unforged(arrival: Arrival) -> bytes | Reject:
    """The first bytes of a client that may not send a PROXY header, once it is clear that they are none."""
    data = arrival.first
    while (is_header := recognise(data)) is None:
        more = await arrival.stream.receive_some(_READ_BYTES)
        if not more:
            break
        data += more
    return Reject(Reason.PROXY_HEADER_UNTRUSTED, "a PROXY header") if is_header else data
