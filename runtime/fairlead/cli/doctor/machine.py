"""What this machine has to say: files and who may read them, disks, ports. Blocks and waits; changes nothing but a
file of its own, which it takes away again."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import tomli
import trio

from fairlead.cli.doctor.finding import Finding, error, ok, warning
from fairlead.cli.doctor.running import expiry
from fairlead.proxy.config import ProxyConfig
from fairlead.runtime.config import read_private_file
from fairlead.runtime.world import World

FREE_BYTES_MIN: Final = 100 * 1024 * 1024
FREE_BYTES_WARN: Final = 1024 * 1024 * 1024
FSYNC_MS_WARN: Final = 50.0
FSYNC_MS_MAX: Final = 1_000.0
FSYNCS: Final = 5
CONNECT_S: Final = 2.0
WILDCARDS: Final = ("0.0.0.0", "::")
_SECRET_NAMES: Final = ("secret", "key", "password", "token", "keys")
_OTHERS_MAY_READ: Final = 0o044


# -- files


def file_modes(path: str) -> list[Finding]:
    """Whether others can read a configuration that has secrets in it, or the files of secrets that it names."""
    return list(_file_modes(path))


def _file_modes(path: str) -> Iterator[Finding]:
    try:
        data, mode = tomli.loads(Path(path).read_text()), os.stat(path).st_mode
    except (OSError, tomli.TOMLDecodeError) as problem:
        yield error(f"file {path}", str(problem), "correct the path, or the file")
        return
    inline = [name for name, value in _flat(data) if _is_secret(name) and value]
    if inline and mode & _OTHERS_MAY_READ:
        yield error(f"file {path}", f"holds {', '.join(inline)}, and its mode {mode & 0o777:04o} lets others read it",
                    f"chmod 600 {path}, or move secrets into files of their own (`..._file`)")  # fmt: skip
    for name, value in _flat(data):
        if not (name.endswith("_file") and _is_secret(name.removesuffix("_file"))):
            continue
        try:
            read_private_file(value)
        except (OSError, ValueError) as problem:
            yield error(f"file {value}", f"{name}: {getattr(problem, 'strerror', None) or problem}",
                        f"make it, or chmod 600 {value}")  # fmt: skip
        else:
            yield ok(f"file {value}", f"{name}: nobody else reads it")


def _is_secret(name: str) -> bool:
    last = name.rpartition(".")[2].removesuffix("_previous")
    return last.rpartition("_")[2] in _SECRET_NAMES and last != "tls_fingerprint"


def _flat(data: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Every text in it with its path."""
    for name, value in data.items():
        path = f"{before}{name}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}.")
        elif isinstance(value, list):
            for each in value:
                if isinstance(each, Mapping):
                    yield from _flat(each, f"{path}.")
                elif isinstance(each, str):
                    yield path, each
        elif isinstance(value, str):
            yield path, value


def certificates(config: ProxyConfig, now_ms: int) -> Iterator[Finding]:
    """How long the configured certificates are good for."""
    from cryptography import x509

    for each in config.certificates:
        try:
            found = x509.load_pem_x509_certificates(Path(each.chain_file).read_bytes())
            read_private_file(each.key_file)
        except (OSError, ValueError) as problem:
            yield error("certificates", f"{each.id}: {problem}", "correct the file that it names")
            continue
        ends_ms = round(min(one.not_valid_after_utc for one in found).timestamp() * 1000)
        yield expiry(each.id, ends_ms, now_ms, config.tls.expiry_warn_days)


# -- disks


def disk(name: str, folder: Path) -> Iterator[Finding]:
    """Room, whether one can write, and how long a flush takes."""
    check = f"disk of {name}"
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if there != folder:
        yield warning(
            check,
            f"{folder} is not there yet; a start makes it",
            "correct the path if it is not meant",
        )
    try:
        free = shutil.disk_usage(there).free
        flush_ms = _flush_ms(there)
    except OSError as problem:
        yield error(
            check, f"{there}: {problem.strerror or problem}", "let the user of the process write there"
        )
        return
    room = f"{free // (1024 * 1024)} MiB free"
    if free < FREE_BYTES_MIN:
        yield error(check, f"{there}: {room}", "make room: what cannot be written is refused")
    elif free < FREE_BYTES_WARN:
        yield warning(check, f"{there}: {room}", "make room before it is full")
    else:
        yield ok(check, f"{there}: {room}, writable")
    told = f"a flush takes {flush_ms:.1f} ms"
    if flush_ms > FSYNC_MS_MAX:
        yield error(f"flush of {name}", told, "the disk hangs: move the data, or find what keeps it busy")
    elif flush_ms > FSYNC_MS_WARN:
        yield warning(f"flush of {name}", told, "every acceptance waits for one: use a faster disk")
    else:
        yield ok(f"flush of {name}", told)


def _flush_ms(folder: Path) -> float:
    """The median of a few."""
    spent = []
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
        for _ in range(FSYNCS):
            began = time.perf_counter()
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
            spent.append((time.perf_counter() - began) * 1000)
    return statistics.median(spent)


# -- ports


async def ports(
    world: World, wanted: Iterable[tuple[str, str, int]], *, running: bool, private: Iterable[str] = ()
) -> list[Finding]:
    """Name, host and port of what is (or would be) listened on. `private`: names that no wildcard is for."""
    found = []
    for name, host, port in wanted:
        if not port:
            continue
        if host in WILDCARDS and name in private:
            found.append(warning(f"port {port} ({name})", f"listens on every address ({host})",
                                 "bind it to loopback or to an inner network"))  # fmt: skip
        found.append(await (_reachable if running else _free)(world, name, host, port))
    return found


async def _reachable(world: World, name: str, host: str, port: int) -> Finding:
    at = "127.0.0.1" if host == "0.0.0.0" else "::1" if host == "::" else host
    problem = "no answer in time"
    with trio.move_on_after(CONNECT_S):
        try:
            (await world.connect_tcp(at, port)).close()
        except ConnectionResetError:
            return ok(f"port {port} ({name})", f"{host} takes connections, and ended this one at once")
        except OSError as failure:
            problem = failure.strerror or str(failure)
        else:
            return ok(f"port {port} ({name})", f"{host} takes connections")
    return error(f"port {port} ({name})", f"{host} does not take connections: {problem}",
                 "is it configured since the last start? Restart; look at `ss -ltnp` and at firewalls")  # fmt: skip


async def _free(world: World, name: str, host: str, port: int) -> Finding:
    try:
        (await world.listen_tcp(host, port)).close()
    except OSError as failure:
        return error(f"port {port} ({name})", f"{host} cannot be listened on: {failure.strerror or failure}",
                     "stop what has it (`ss -ltnp`), or choose another")  # fmt: skip
    return ok(f"port {port} ({name})", f"{host} is free")
