"""The certificates in force: of listeners, and of the authorities that vouch for clients and backends.

Read before anything is bound, and again when an operator asks or a file changes. Connections that stand keep what they
were made with.

Invariants: a set is taken over whole or not at all, and the last good one stays; files are read in a thread; what is
wrong is counted and logged once for each change of the files, and shown by health until it is right; a certificate that
has run out does not replace one that has not.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import trio

from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.edge.certificate_files import (
    CertificateSet,
    Stamps,
    Unusable,
    files_of,
    load,
    pinning_context,
    stamps_of,
)
from fairlead.proxy.edge.settings import EdgeConfig
from fairlead.runtime.observer import Observer
from fairlead.runtime.world import World

DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class CertificateNote:
    """What an operator should know."""

    reason: str
    detail: str


class Certificates:
    """Owns the set in force."""

    def __init__(self, config: EdgeConfig, world: World, observer: Observer) -> None:
        self._config, self._world, self._observer = config, world, observer
        self._files = files_of(config)
        self._set = CertificateSet()
        self._tried: Stamps = {}  # how the files were when they were read last, well or not
        self._loading, self._has_files = trio.Lock(), trio.Event()
        self._pinning = pinning_context()
        self.problem = ""  # why the files on the disk are not in force
        self.loads = 0  # sets that were taken over
        self.on_load: Callable[[], None] = lambda: None
        observer.metrics.computed(
            "edge_tls_certificate_seconds_left", "Until a listener's certificate runs out.", ("certificate",),
            self._seconds_left,
        )  # fmt: skip

    async def start(self) -> None:
        """Read them for the first time. Raises Refused: without its certificates a listener cannot serve."""
        is_needed = self._files or any(each.tls == "ca" for each in self._config.backends)
        if is_needed and not await self.reload():
            raise Refused(Reason.TLS_CERTIFICATE_UNUSABLE, self.problem)

    async def watch(self) -> None:
        """Take over what changes in the files, until cancelled."""
        while True:
            await self._has_files.wait()
            await trio.sleep(self._config.tls_files.reload_interval_s)
            if await self._world.run_in_thread(lambda: stamps_of(self._files)) != self._tried:
                await self.reload()

    async def reload(self) -> bool:
        """Read all files again. False, and the last good set stays, where one of them cannot be used."""
        return await self.replace(self._config)

    async def replace(self, config: EdgeConfig) -> bool:
        """Read the files that `config` names. False, and the last good set stays, where one of them cannot be used."""
        async with self._loading:
            files = files_of(config)
            tried = await self._world.run_in_thread(lambda: stamps_of(files))
            if config is self._config:
                self._tried = tried
            try:
                loaded = await self._world.run_in_thread(lambda: load(config))
                self._must_not_be_worse(loaded)
            except Unusable as error:
                self.problem = str(error)
                self._observer.refused(
                    Reason.TLS_CERTIFICATE_UNUSABLE, self.problem, level="error",
                    kept="the last good ones" if self._set.stamps else "nothing",
                )  # fmt: skip
                return False
            self.problem = ""
            self._config, self._files, self._tried, self._set = config, files, tried, loaded
            if files:
                self._has_files.set()
            self.loads += 1
            self.on_load()
            self._observer.log.info(
                "certificates_loaded",
                **{each.id: f"{each.sha256[:16]} ({self._days_left(each.expires_at_ms)} days)"
                   for each in loaded.facts.values()},
            )  # fmt: skip
            return True

    def _must_not_be_worse(self, loaded: CertificateSet) -> None:
        now_ms = self._world.wall_ms()
        for before in self._set.facts.values():
            after = loaded.facts.get(before.id)
            if after is not None and after.expires_at_ms <= now_ms < before.expires_at_ms:
                raise Unusable(f"certificate {after.id} on the disk has run out; the one in use has not")

    # -- what is in force

    def of_listener(self, name: str) -> ssl.SSLContext | None:
        """The context of a listener; None where it speaks plainly."""
        return self._set.listeners.get(name)

    def of_authorities(self, ca_file: str) -> ssl.SSLContext:
        """The context for backends that these authorities vouch for. Raises Refused."""
        found = self._set.backends.get(ca_file)
        if found is None:  # a backend that has come since, with authorities that could not be read
            raise Refused(Reason.BACKEND_TLS_FAILED, f"{ca_file or 'the authorities'}: not read yet")
        return found

    @property
    def pinning(self) -> ssl.SSLContext:
        """The context for backends that are known by the certificate itself."""
        return self._pinning

    def notes(self) -> list[CertificateNote]:
        """For health: the worst first."""
        now_ms, warn_ms = self._world.wall_ms(), self._config.tls_files.expiry_warn_s * 1000
        found = []
        for each in sorted(self._set.facts.values(), key=lambda facts: facts.expires_at_ms):
            if each.expires_at_ms <= now_ms:
                found.append(CertificateNote("CERTIFICATE_EXPIRED", f"{each.id} has run out"))
            elif each.expires_at_ms - now_ms < warn_ms:
                detail = f"{each.id} runs out in {self._days_left(each.expires_at_ms)} days"
                found.append(CertificateNote("CERTIFICATE_EXPIRES", detail))
        if self.problem:
            detail = f"the last good certificates are kept: {self.problem}"
            found.append(CertificateNote(Reason.TLS_CERTIFICATE_UNUSABLE.value, detail))
        return found

    def rows(self) -> list[dict[str, Any]]:
        """For /status."""
        return [
            {
                "id": each.id,
                "names": list(each.names),
                "sha256": each.sha256,
                "expires_at_ms": each.expires_at_ms,
            }
            for each in self._set.facts.values()
        ]

    def _days_left(self, expires_at_ms: int) -> int:
        return (expires_at_ms - self._world.wall_ms()) // DAY_MS

    def _seconds_left(self) -> dict[tuple[str, ...], float]:
        now_ms = self._world.wall_ms()
        return {(each.id,): (each.expires_at_ms - now_ms) / 1000 for each in self._set.facts.values()}
