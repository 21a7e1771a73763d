"""`fairlead incident-bundle`: what an incident leaves behind, in one archive that may be handed on.

Follows runbook 003's checklist: logs by correlation id, /metrics and /status of the window, configuration, the audit
trail, versions, and the checklist itself to fill in. What a proxy does not have is named in the manifest.

Invariants: the archive is written whole or not at all, readable by its owner only, and never with a secret in it: every
file is looked through first (`leaks`), and one finding is enough to refuse. Nothing on the proxy is changed.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
import tarfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import tomli

from fairlead.cli.check_leaks import known_secrets
from fairlead.cli.ctl.audit import EXPORT
from fairlead.cli.ctl.calling import Failed, fetch, query
from fairlead.cli.incident_checklist import checklist
from fairlead.cli.leaks import find, is_secret_name, without_secrets
from fairlead.runtime.process import EXIT_CONFIG, EXIT_FAILED, EXIT_STOPPED
from fairlead.runtime.version import SOFTWARE
from fairlead.runtime.world import RealWorld

LOG_BYTES_MAX: Final = 32 * 1024 * 1024
AUDIT_LINES_MAX: Final = 200_000
# What is asked of the proxy; what it does not know is noted.
ASKED: Final = (
    ("status.json", "/status"), ("metrics.txt", "/metrics"), ("metrics-reasons.json", "/metrics/reasons"),
    ("health.json", "/health"), ("health-test.json", "/health/test"), ("nodes.json", "/api/nodes"),
    ("commands.json", "/api/commands"), ("dead-letters.json", "/api/ops/reliability/dlq?limit=200"),
    ("replay-worker.json", "/api/ops/reliability/dlq/replay-worker"), ("slo.json", "/api/ops/reliability/slo"),
    ("ops-metrics.json", "/ops/metrics"), ("alerts.json", "/api/alerts"), ("rollouts.json", "/api/rollouts"),
    ("flags.json", "/api/flags"), ("agents.json", "/api/controls/agents"),
    ("kill-switch.json", "/api/controls/kill-switch"), ("dispatch-rollout.json", "/api/controls/rollout"),
    ("budgets.json", "/api/budgets"), ("failed-runs.json", "/api/runs?status=FAILED&limit=200"),
)  # fmt: skip
_AGO: Final = re.compile(r"(\d{1,6})([smhd])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_STAMP: Final = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?Z")


class NotBundled(Exception):
    """What the operator reads instead of a traceback."""


def run(options: argparse.Namespace) -> int:
    now_ms = RealWorld().wall_ms()
    try:
        window = (moment(options.since, now_ms), moment(options.until, now_ms))
        if window[0] >= window[1]:
            raise NotBundled("--since is not before --until")
        secrets = known_secrets((*options.proxy_config, *options.node_config), os.environ)
        if options.ops_key:
            secrets += known_secrets((), {"OPS_KEY": options.ops_key})
        files, missing = gather(options, window, now_ms)
    except (NotBundled, OSError, ValueError) as error:
        print(f"fairlead incident-bundle: {error}", file=sys.stderr)
        return EXIT_CONFIG
    leaks = [(name, leak) for name, data in files.items() for leak in find(data, secrets)]
    if leaks:
        print(
            f"fairlead incident-bundle: {options.output} was not written: it would hold secrets",
            file=sys.stderr,
        )
        for name, leak in leaks:
            print(f"  {name}, {leak}", file=sys.stderr)
        print("  leave that file out or take the lines away, and rotate what stood there", file=sys.stderr)
        return EXIT_FAILED
    write(Path(options.output), files, now_ms)
    if options.json:
        print(json.dumps({"file": options.output, "files": sorted(files), "missing": missing}, indent=2))
    else:
        print(
            f"{options.output}: {len(files)} files, {sum(map(len, files.values())) // 1024} KiB before compression"
        )
        for name, why in missing.items():
            print(f"  without {name}: {why}")
        print("  next: fill in checklist.md")
    return EXIT_STOPPED


def moment(text: str, now_ms: int) -> int:
    """A time in milliseconds. Raises NotBundled."""
    ago = _AGO.fullmatch(text)
    if ago:
        return now_ms - round(timedelta(**{_UNITS[ago[2]]: int(ago[1])}).total_seconds() * 1000)
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise NotBundled(f"{text}: {error}") from error
    if found.tzinfo is None:
        raise NotBundled(f"{text} needs an offset, such as Z")
    return round(found.timestamp() * 1000)


def gather(
    options: argparse.Namespace, window: tuple[int, int], now_ms: int
) -> tuple[dict[str, bytes], dict[str, str]]:
    """Every file by its name in the archive, and what is missing, with the reason."""
    files: dict[str, bytes] = {}
    missing: dict[str, str] = {}
    for name, path in ASKED:
        _take(files, missing, f"proxy/{name}", lambda path=path: fetch(options, path)[0])
    _take(files, missing, "proxy/audit.jsonl", lambda: b"".join(_audit(options, window)))
    _series(options, now_ms - window[0], files, missing)
    for url in options.node_url:
        node = argparse.Namespace(**{**vars(options), "url": url, "ops_key": ""})
        name = re.sub(r"[^a-z0-9.-]+", "-", url.lower()).strip("-")
        for file in ("status", "metrics", "health"):
            _take(
                files,
                missing,
                f"nodes/{name}/{file}.txt",
                lambda node=node, file=file: fetch(node, f"/{file}")[0],
            )
    wanted = [each.encode() for each in options.correlation_id]
    for path in options.log:
        _take(
            files, missing, f"logs/{_flat(path)}", lambda path=path: b"".join(lines_of(path, window, wanted))
        )
    for path in (*options.proxy_config, *options.node_config):
        files[f"configuration/{_flat(path)}.json"] = _json(
            without_secrets(tomli.loads(Path(path).read_text()))
        )
    files["configuration/environment.json"] = _json(environment_names(os.environ))
    status = _decoded(files.get("proxy/status.json"))
    manifest = {
        "made_at_ms": now_ms, "made_by": SOFTWARE, "url": options.url, "since_ms": window[0], "until_ms": window[1],
        "correlation_ids": options.correlation_id, "why": options.because, "versions": versions(status),
        "files": sorted(files), "missing": missing,
    }  # fmt: skip
    files["manifest.json"] = _json(manifest)
    files["checklist.md"] = checklist(
        manifest, status, _decoded(files.get("proxy/metrics-reasons.json"))
    ).encode()
    return files, missing


def _take(files: dict[str, bytes], missing: dict[str, str], name: str, read: Any) -> None:
    try:
        files[name] = read()
    except (Failed, OSError) as error:
        missing[name] = str(error).partition("\n")[0]


def _audit(options: argparse.Namespace, window: tuple[int, int]) -> Iterator[bytes]:
    """The rows of the window and on to the checkpoint that covers them, so that they can be verified (`--partial`)."""
    seq: int | None = 1
    lines = 0
    written: set[bytes] = set()  # checkpoints: the next page begins with the last one's
    while seq is not None:
        content, headers = fetch(options, EXPORT + query({"from_seq": seq}))
        for line in content.splitlines(keepends=True):
            read = json.loads(line)
            is_checkpoint = read["kind"] == "checkpoint"
            if read["at_ms"] < window[0] or line in written or (is_checkpoint and not lines):
                continue
            lines += 1
            yield line
            if is_checkpoint:
                written.add(line)
                if read["at_ms"] >= window[1] or lines > AUDIT_LINES_MAX:
                    return
        seq = int(headers["x-next-seq"]) if "x-next-seq" in headers else None


def _series(
    options: argparse.Namespace, back_ms: int, files: dict[str, bytes], missing: dict[str, str]
) -> None:
    """The history that the proxy keeps, so far back, where it keeps any: every series that it names."""
    back = query({"window": f"{max(60, -(-back_ms // 1000))}s"})
    try:
        listed = json.loads(fetch(options, "/metrics/series" + back)[0])
    except (Failed, ValueError) as error:
        missing["proxy/series"] = str(error).partition("\n")[0]
        return
    names = listed.get("metrics", ()) if isinstance(listed, dict) else ()
    for each in names:
        name = each if isinstance(each, str) else str(each.get("name", ""))
        asked = f"/metrics/series{back}&" + query({"metric": name}).removeprefix("?")
        _take(
            files, missing, f"proxy/series/{_flat(name)}.json", lambda asked=asked: fetch(options, asked)[0]
        )


def lines_of(path: str, window: tuple[int, int], wanted: list[bytes]) -> Iterator[bytes]:
    """The lines of a log that are of the window and, where ids are wanted, that name one of them. A line without a time
    belongs to the one before it."""
    first, last = (_stamp(at_ms) for at_ms in window)
    inside, taken = False, 0
    with open(path, "rb") as file:
        for line in file:
            found = _STAMP.search(line[:400])
            if found is not None:
                inside = first <= found[0][:19] <= last and (
                    not wanted or any(each in line for each in wanted)
                )
            if inside:
                taken += len(line)
                if taken > LOG_BYTES_MAX:
                    yield b"... cut off here: more than fits\n"
                    return
                yield line


def _stamp(at_ms: int) -> bytes:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S").encode()


def environment_names(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables that may configure a process: what is no secret with its value."""
    prefixes = (
        "FAIRLEAD_", "SECURITY_", "DISPATCH_", "RELIABILITY_", "SLO_", "RETRY_", "WORKER_", "MESSAGING_", "STORE_",
        "JWT_",
    )  # fmt: skip
    chosen = {name: value for name, value in environ.items() if name.startswith(prefixes)}
    return {
        name: "[redacted]" if is_secret_name(name) else str(without_secrets(value))
        for name, value in chosen.items()
    }


def versions(status: Mapping[str, Any]) -> dict[str, Any]:
    """Of the proxy and of each node, as the proxy knows them."""
    return {
        "command line": SOFTWARE, "proxy": status.get("software", ""), "artifact": status.get("artifact"),
        "nodes": {each["id"]: each.get("software", "") for each in status.get("nodes", ())},
    }  # fmt: skip


def write(path: Path, files: Mapping[str, bytes], now_ms: int) -> None:
    """Whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    folder = path.name.removesuffix(".gz").removesuffix(".tar").removesuffix(".tgz")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as raw, tarfile.open(fileobj=raw, mode="w:gz") as archive:
        for name in sorted(files):
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size, member.mtime, member.mode = len(files[name]), now_ms // 1000, 0o600
            archive.addfile(member, io.BytesIO(files[name]))
    part.replace(path)


def _flat(path: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", path).strip("_")[-100:]


def _json(data: Any) -> bytes:
    return json.dumps(data, indent=2, default=str).encode() + b"\n"


def _decoded(data: bytes | None) -> Mapping[str, Any]:
    found = json.loads(data) if data else {}
    return found if isinstance(found, dict) else {}
