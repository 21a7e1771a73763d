"""TLS over any byte stream: what a peer sends and gets is encrypted, and the shape stays that of a byte stream.

Stands between a transport and whoever speaks a protocol over it. OpenSSL computes, in memory; bytes come and go through
the stream below, so this runs over sockets and in a simulation alike, and owns neither thread nor socket.

Invariants:

* ciphertext leaves in the order in which it was made: one task sends at a time, and what waits goes first;
* at most `_CHUNK_BYTES` of plaintext are encrypted ahead of a transport that takes nothing, and at most `_READ_BYTES`
  of ciphertext are read ahead of whoever reads;
* who was told that a part of its bytes was not taken sends that part next, or nothing more: `send_nowait` counts one
  byte less than it took while ciphertext waits, so that there is a next call, and passes over that byte then. Else the
  end of an answer could stay here while both sides wait for each other;
* an end without close_notify may be a truncation: it is an error, or (`strict_end` false, for a protocol that frames
  itself) an end that `ended_cleanly` tells apart.
"""

from __future__ import annotations

import ssl
from typing import Any, Final

import trio

from fairlead.runtime.streams import ByteStream, SocketStream

_READ_BYTES: Final = 64 * 1024
_CHUNK_BYTES: Final = 64 * 1024
_RECORD_BYTES: Final = 16 * 1024
_CONTROL_BYTES_MAX: Final = 16 * 1024  # what may wait of our own messages before reading waits for it
_HANDSHAKE_BYTES_MAX: Final = 256 * 1024  # certificates with their chains, both ways
_TURNS_MAX: Final = 16

# One buffer for the process: full only between a decryption and the copy that follows it.
_shared = memoryview(bytearray(_READ_BYTES))
_ciphertext = memoryview(bytearray(_READ_BYTES))

_WORDS: Final = {
    "HTTP_REQUEST": "plain HTTP, where TLS is spoken",
    "WRONG_VERSION_NUMBER": "that is not TLS",
    "UNKNOWN_PROTOCOL": "that is not TLS",
    "UNSUPPORTED_PROTOCOL": "a version of TLS that is not spoken here",
    "NO_SHARED_CIPHER": "no cipher that both sides know",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the peer showed no certificate",
    "UNEXPECTED_EOF_WHILE_READING": "the connection ended in the middle",
}


class TlsObject(ssl.SSLObject):
    """One side of a TLS connection, and the server name that the client asked for."""

    asked_name: str = ""


def failure_text(error: ssl.SSLError) -> str:
    """What went wrong, for people."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not trusted: {error.verify_message}"
    reason = error.reason or ""
    if reason in _WORDS:
        return _WORDS[reason]
    if "ALERT_" in reason:
        return f"the peer refused: {reason.partition('ALERT_')[2].replace('_', ' ').lower()}"
    return reason.replace("_", " ").lower() or str(error)


class NeverBegan(trio.BrokenResourceError):
    """The peer left without a byte of a handshake, as scanners and health checks do."""


async def server_handshake(
    stream: ByteStream, context: ssl.SSLContext, *, first: bytes = b"", strict_end: bool = True
) -> TlsStream:
    """Answer a client's handshake; `first` was read of it already. The caller sets the deadline, and closes `stream`
    where this raises trio.BrokenResourceError."""
    return await _handshake(stream, context, first, strict_end, is_server=True, name=None)


async def client_handshake(
    stream: ByteStream, context: ssl.SSLContext, name: str | None, *, strict_end: bool = True
) -> TlsStream:
    """Begin a handshake with the server called `name`. The caller sets the deadline, and closes `stream` where this
    raises trio.BrokenResourceError."""
    return await _handshake(stream, context, b"", strict_end, is_server=False, name=name)


async def _handshake(
    stream: ByteStream,
    context: ssl.SSLContext,
    first: bytes,
    strict_end: bool,
    *,
    is_server: bool,
    name: str | None,
) -> TlsStream:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context.sslobject_class = TlsObject
    tls = context.wrap_bio(incoming, outgoing, server_side=is_server, server_hostname=name)
    assert isinstance(tls, TlsObject)
    taken = len(first)
    if first:
        incoming.write(first)
    while True:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            await _send_alert(stream, outgoing)
            raise trio.BrokenResourceError(failure_text(error)) from error
        except ValueError as error:  # a server name that no certificate can have
            raise trio.BrokenResourceError(str(error)) from error
        else:
            made = TlsStream(stream, tls, incoming, outgoing, strict_end)
            if is_server and tls.version() == "TLSv1.3":
                made._push_or_fail()  # session tickets, which nobody waits for
            else:
                await made.flush()
            return made
        if outgoing.pending:
            await stream.send_all(outgoing.read())
        data = await stream.receive_some(_READ_BYTES)
        taken += len(data)
        if taken > _HANDSHAKE_BYTES_MAX:
            raise trio.BrokenResourceError(f"a handshake of more than {_HANDSHAKE_BYTES_MAX} bytes")
        if data:
            incoming.write(data)
        elif taken:
            raise trio.BrokenResourceError("the connection ended in the middle of the handshake")
        else:
            raise NeverBegan("the connection ended before a byte of the handshake")


async def _send_alert(stream: ByteStream, outgoing: ssl.MemoryBIO) -> None:
    if outgoing.pending:
        try:
            await stream.send_all(outgoing.read())
        except trio.BrokenResourceError:
            pass  # It is gone; why the handshake failed is what counts.


class TlsStream:
    """A ByteStream of plaintext over a ByteStream of ciphertext, which it owns. Made by a handshake."""

    __slots__ = (
        "_arrived", "_drained", "_failure", "_incoming", "_is_closed", "_is_over", "_is_sending", "_left",
        "_outgoing", "_owed", "_ready", "_sent_eof", "_stream", "_strict_end", "_tls", "_turns", "ended_cleanly",
    )  # fmt: skip

    def __init__(
        self,
        stream: ByteStream,
        tls: TlsObject,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        strict_end: bool,
    ) -> None:
        self._stream, self._tls, self._incoming, self._outgoing = stream, tls, incoming, outgoing
        self._strict_end = strict_end
        self._arrived = b""  # ciphertext that OpenSSL was not given yet
        self._is_over = False  # nothing more comes
        self._ready = b""  # plaintext that was decrypted before its time
        self._left = b""  # ciphertext that the transport did not take yet
        self._owed = False  # the next byte that is sent has been encrypted already
        self._is_sending = False
        self._drained: trio.Event | None = None  # somebody waits until what is being sent has gone
        self._sent_eof = self._is_closed = False
        self._failure = ""
        self._turns = 0
        self.ended_cleanly = False  # the peer said that it had said all

    # -- what the handshake found

    @property
    def peer_host(self) -> str:
        return self._stream.peer_host

    @property
    def peer_port(self) -> int:
        return self._stream.peer_port

    @property
    def version(self) -> str:
        """As in "TLSv1.3"."""
        return self._tls.version() or ""

    @property
    def alpn(self) -> str:
        return self._tls.selected_alpn_protocol() or ""

    @property
    def server_name(self) -> str:
        """What the client asked for, lower case. On the server's side."""
        return self._tls.asked_name

    def peer_certificate(self) -> bytes | None:
        """The peer's certificate (DER), whether or not it was verified."""
        return self._tls.getpeercert(binary_form=True)

    def peer_subject(self) -> str:
        """The subject of the peer's certificate where that was verified, like CN=alice, O=Example."""
        found: Any = (self._tls.getpeercert() or {}).get("subject", ())
        names = [pair for each in found for pair in each]
        return ", ".join(f"{_SHORT.get(name, name)}={value}" for name, value in reversed(names))

    # -- receiving

    async def receive_some(self, max_bytes: int) -> bytes:
        await self._take_turn()  # before anything is taken: a cancelled read loses nothing
        while True:
            found = self._read_nowait(max_bytes)
            if self._outgoing.pending:
                await self._answer()
            if found is not None:
                return found
            self._arrive(await self._stream.receive_some(_READ_BYTES))

    def receive_nowait(self) -> bytes | None:
        """What has arrived: b"" at end of file, None where nothing has, or where only waiting would tell."""
        found = self._read_nowait(_READ_BYTES)
        while found is None and isinstance(self._stream, SocketStream):
            count = self._stream.receive_into_nowait(_ciphertext)
            if count is None:
                break
            self._arrive(bytes(_ciphertext[:count]))
            found = self._read_nowait(_READ_BYTES)
        if self._outgoing.pending:
            self._push_or_fail()
        return found

    def _arrive(self, data: bytes) -> None:
        self._check()
        if data:
            self._arrived = data
        else:  # OpenSSL is not told: it would refuse to send any more, and the peer may still be reading
            self._is_over = True

    def _feed(self) -> bool:
        """Give OpenSSL about one record more. Its buffers never shrink, so they are not given all there is."""
        if not self._arrived:
            return False
        self._incoming.write(self._arrived[:_RECORD_BYTES])
        self._arrived = self._arrived[_RECORD_BYTES:]
        return True

    def _read_nowait(self, max_bytes: int) -> bytes | None:
        """What can be decrypted now, at most a buffer full; b"" at end of file; None where more has to come."""
        if self._is_closed:
            raise trio.ClosedResourceError("this stream was closed")
        if self._ready:
            found, self._ready = self._ready[:max_bytes], self._ready[max_bytes:]
            return found
        self._check()
        size, count = min(max_bytes, _READ_BYTES), 0
        while count < size and not self._is_over:
            if not (self._incoming.pending or self._tls.pending() or self._feed()):
                break
            try:
                got: Any = self._tls.read(size - count, _shared[count:size])
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLZeroReturnError:
                self._is_over = self.ended_cleanly = True
            except ssl.SSLError as error:
                text = failure_text(error)
                self._push_or_fail()  # the alert that says why
                self._failure = self._failure or text
                if not count:
                    raise trio.BrokenResourceError(text) from error
                break  # what came before it is whole, and is read first
            else:
                self._is_over = self.ended_cleanly = not got
                count += got
        if count:
            return bytes(_shared[:count])
        if not self._is_over:
            return None
        if self._strict_end and not self.ended_cleanly:
            raise self._broken("the connection ended without close_notify: cut off?")
        return b""

    async def _answer(self) -> None:
        """Messages of TLS itself that reading made, such as the answer to a change of keys."""
        self._push_or_fail()
        if not self._failure and len(self._left) + self._outgoing.pending > _CONTROL_BYTES_MAX:
            await self.flush()

    # -- sending

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._check_sendable()
        if not len(data):
            return await self._take_turn()
        with memoryview(data) as whole:
            at = 1 if self._owed else 0
            self._owed = False
            if at and at == len(whole):
                return await self.flush()
            while at < len(whole):
                while self._is_sending or self._left:
                    await self.flush()
                with whole[at : at + _CHUNK_BYTES] as chunk:
                    self._encrypt(chunk)
                    at += len(chunk)
                await self.flush()

    def send_nowait(self, data: bytes | memoryview) -> int:
        """How many bytes it took without waiting: possibly none. What it did not take has to come next, if anything."""
        self._check_sendable()
        if not len(data) or not self._push():
            return 0
        with memoryview(data) as whole:
            at = 1 if self._owed else 0
            self._owed = False
            while at < len(whole):
                with whole[at : at + _CHUNK_BYTES] as chunk:
                    self._encrypt(chunk)
                    at += len(chunk)
                if not self._push():
                    self._owed = True
                    return at - 1
        return at

    async def send_eof(self) -> None:
        """Say that nothing more is sent (close_notify, then the transport's end); go on receiving."""
        self._check()
        if self._sent_eof:
            return await self._take_turn()
        await self.flush()
        self._say_end()
        await self.flush()
        await self._stream.send_eof()

    async def flush(self) -> None:
        """Until all that is encrypted has gone into the transport."""
        self._check()
        if self._is_sending:  # the other task sends in a loop until nothing is left
            if self._drained is None:
                self._drained = trio.Event()
            await self._drained.wait()
            return self._check()
        self._is_sending = True
        try:
            while True:
                data = self._left or (self._outgoing.read() if self._outgoing.pending else b"")
                if not data:
                    return
                self._left = b""
                await self._stream.send_all(data)
        except trio.Cancelled:
            # Nobody knows how much of a record has gone: nothing that follows could be decrypted.
            self._failure = self._failure or "a send was given up in the middle of a record"
            raise
        except trio.BrokenResourceError as error:
            self._failure = self._failure or str(error)
            raise
        finally:
            self._is_sending = False
            if self._drained is not None:
                self._drained.set()
                self._drained = None

    def _encrypt(self, chunk: memoryview) -> None:
        """Record by record, out of OpenSSL's buffer at once: it never shrinks."""
        made = [self._left]
        if self._outgoing.pending:
            made.append(self._outgoing.read())
        at = 0
        try:
            while at < len(chunk):
                at += self._tls.write(chunk[at : at + _RECORD_BYTES])
                made.append(self._outgoing.read())
        except ssl.SSLError as error:
            raise self._broken(failure_text(error)) from error
        self._left = b"".join(made)

    def _push(self) -> bool:
        """Send what goes at once. Whether nothing is left."""
        if self._is_sending:
            return False
        while True:
            data = self._left or (self._outgoing.read() if self._outgoing.pending else b"")
            if not data:
                return True
            try:
                sent = self._stream.send_nowait(data)
            except trio.BrokenResourceError as error:
                self._failure = str(error)
                raise
            self._left = data[sent:]
            if self._left:
                return False

    def _say_end(self) -> None:
        """Make the close_notify. The same call looks for the peer's, and loses what else has arrived: so that is kept
        from it."""
        self._sent_eof = True
        waiting = self._incoming.read() if self._incoming.pending else b""  # before what has arrived since
        try:
            if held := self._tls.pending():
                self._ready += self._tls.read(held)
            self._tls.unwrap()
        except ssl.SSLError:
            pass  # It waits for the peer's close_notify, or found something else: the next read says what.
        finally:
            if waiting:
                self._incoming.write(waiting)

    def _push_or_fail(self) -> None:
        """Messages of TLS itself, as far as they go at once. Where the peer is gone the next call says so."""
        try:
            self._push()
        except trio.BrokenResourceError:
            pass

    # -- the end

    def close(self) -> None:
        if self._is_closed:
            return
        if not self._sent_eof and not self._failure and not self._is_sending and not self._left:
            self._say_end()
            self._push_or_fail()
        self._is_closed = True
        self._stream.close()

    def abort(self) -> None:
        self._is_closed = True
        self._stream.abort()

    def _check(self) -> None:
        if self._is_closed:
            raise trio.ClosedResourceError("this stream was closed")
        if self._failure:
            raise trio.BrokenResourceError(self._failure)

    def _check_sendable(self) -> None:
        self._check()
        if self._sent_eof:
            raise trio.BrokenResourceError("the end was sent already")

    def _broken(self, text: str) -> trio.BrokenResourceError:
        self._failure = text
        return trio.BrokenResourceError(text)

    async def _take_turn(self) -> None:
        self._turns += 1
        if self._turns >= _TURNS_MAX:
            self._turns = 0
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()


_SHORT: Final = {
    "commonName": "CN", "organizationName": "O", "organizationalUnitName": "OU", "countryName": "C",
    "localityName": "L", "stateOrProvinceName": "ST", "domainComponent": "DC", "emailAddress": "emailAddress",
}  # fmt: skip
