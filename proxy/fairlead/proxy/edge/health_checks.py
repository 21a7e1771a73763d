"""Asking backends whether they are well.

Shell around `health`, which judges. One task for each backend that is to be asked; beside the clients' journey.

Invariants: a check takes no longer than its deadline and reads no more than a head; checks of many backends do not
begin together; a check never uses, and never leaves, a connection of the clients' pool.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import trio

from fairlead.protocol.proof import ProofKind
from fairlead.protocol.reasons import Reject
from fairlead.protocol.request_proof import RequestSigner, client_facts
from fairlead.proxy.edge.proofs import Purpose
from fairlead.proxy.edge.settings import Backend, HealthCheck
from fairlead.runtime.http.framing import split_head
from fairlead.runtime.http.head import HeadReader
from fairlead.runtime.streams import ByteStream

HEAD_BYTES_MAX: Final = 16 * 1024
_JITTER: Final = 0.2
_INTERIM_MAX: Final = 4

Dial = Callable[[Backend, Purpose], Awaitable[ByteStream | str]]
_FACTS: Final = client_facts("", 0, "fairlead-check")  # to a node's gate: nobody's request but ours


def request_of(backend: Backend, check: HealthCheck, signer: RequestSigner | None = None) -> bytes:
    """The request of a check by HTTP, proven where its gate wants that."""
    host = f"[{backend.host}]" if ":" in backend.host else backend.host
    head = (
        f"GET {check.path} HTTP/1.1\r\nhost: {check.host or f'{host}:{backend.port}'}\r\n"
        "user-agent: fairlead-check\r\naccept: */*\r\nconnection: close\r\n"
    ).encode()
    proof = b"" if signer is None else signer.line(_FACTS, b"", b"GET", check.path.encode(), b"")
    return head + proof + b"\r\n"


class HealthChecks:
    """All checks. `run` for as long as the edge serves; `replace` at any time."""

    def __init__(
        self,
        backends: Iterable[Backend],
        dial: Dial,
        checked: Callable[[str, bool, str], None],
        random_unit: Callable[[], float],
    ) -> None:
        """`dial`: connects as clients' connections are, or says why not."""
        self._backends = tuple(backends)
        self._dial, self._checked, self._random_unit = dial, checked, random_unit
        self._heads = HeadReader()
        self._round = trio.CancelScope()

    def replace(self, backends: Iterable[Backend]) -> None:
        """Ask these from now on."""
        self._backends = tuple(backends)
        self._round.cancel()

    async def run(self) -> None:
        while True:
            self._round = trio.CancelScope()
            with self._round:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(trio.sleep_forever)
                    for backend in self._backends:
                        if backend.check is not None:
                            nursery.start_soon(self._watch, backend, backend.check)

    async def _watch(self, backend: Backend, check: HealthCheck) -> None:
        await trio.sleep(check.interval_s * self._random_unit())
        while True:
            wrong = f"no answer within {check.timeout_s:g} s"
            with trio.move_on_after(check.timeout_s):
                wrong = await self._ask(backend, check)
            self._checked(backend.id, not wrong, wrong)
            await trio.sleep(check.interval_s * (1 + _JITTER * (self._random_unit() - 0.5)))

    async def _ask(self, backend: Backend, check: HealthCheck) -> str:
        """What is wrong with it; empty if nothing is."""
        purpose = Purpose(ProofKind.CHECK)
        dialled = await self._dial(backend, purpose)
        if isinstance(dialled, str):
            return dialled
        try:
            if not check.path:
                return ""
            await dialled.send_all(request_of(backend, check, purpose.signer))
            return await self._judge(dialled, check)
        except trio.BrokenResourceError:
            return "it closed before its answer was complete"
        finally:
            dialled.close()

    async def _judge(self, stream: ByteStream, check: HealthCheck) -> str:
        buffer, interims = b"", 0
        while True:
            found = split_head(buffer, HEAD_BYTES_MAX) if buffer else None
            if found is None:
                data = await stream.receive_some(HEAD_BYTES_MAX)
                if not data:
                    return "it closed before its answer was complete"
                buffer += data
                continue
            head = found if isinstance(found, Reject) else self._heads.response(found[0])
            if isinstance(head, Reject):
                return "its answer is malformed"
            if head.status < 200 and interims < _INTERIM_MAX and not isinstance(found, Reject):
                buffer, interims = found[1], interims + 1
                continue
            if check.status_min <= head.status <= check.status_max:
                return ""
            return f"it answered {head.status}"
