"""`fairlead verify-deployment`: whether what runs is one set that fits together, and is what was meant to be deployed.

Runbook 004's three addresses: API_BASE_URL is a proxy's ops port, WORKER_BASE_URL a node's own (several: comma
separated), WEB_BASE_URL the clients' port. Each is well; each says from which artifact it was built; versions of proxy,
nodes and protocol are one set; with `--with VERSION/MIN..MAX` it is told before a deployment whether what is deployed
next can speak with what runs. Bounded: some six calls. Nothing is changed.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fairlead.cli import findings
from fairlead.cli.asking import Asker, NotAnswered
from fairlead.cli.ctl.calling import DEFAULT_URL
from fairlead.cli.findings import ERROR, OK, WARNING, Found
from fairlead.protocol.limits import WIRE_VERSION_MAX, WIRE_VERSION_MIN
from fairlead.runtime.version import VERSION
from fairlead.runtime.world import RealWorld

WHOLE_TIMEOUT_S: Final = 60.0
BUILD_FIELDS: Final = ("ref", "sha", "created_at")
_SET: Final = re.compile(r"(?P<version>[\w.+-]+)/(?P<low>\d+)(?:\.\.(?P<high>\d+))?")


@dataclass(frozen=True, slots=True)
class Part:
    """What one process says of itself."""

    name: str
    version: str
    build: Mapping[str, str]
    wire: tuple[int, int]


def run(options: argparse.Namespace) -> int:
    """`fairlead verify-deployment`."""
    gate = findings.Gate("verify-deployment", options)
    api = options.api_url or os.environ.get("API_BASE_URL") or os.environ.get("FAIRLEAD_URL", DEFAULT_URL)
    workers = (options.worker_url or os.environ.get("WORKER_BASE_URL", "")).split(",")
    web = options.web_url or os.environ.get("WEB_BASE_URL", "")
    parts: list[Part] = []
    found: list[Found] = []
    found += _proxy(api, options.ops_key, parts)
    for each in filter(None, map(str.strip, workers)):
        found += _node(each, parts)
    found += _clients_port(web, options.web_path) if web else []
    if not any(workers):
        found.append(Found(WARNING, "node", "not asked: set WORKER_BASE_URL or --worker-url"))
    if not web:
        found.append(Found(WARNING, "clients' port", "not asked: set WEB_BASE_URL or --web-url"))
    found += one_set(parts)
    found += built(parts, options.expect_ref, options.expect_sha, required=options.require_build)
    for each in options.beside:
        found += beside(each, parts)
    told = [
        {"part": p.name, "version": p.version, "build": dict(p.build), "wire": list(p.wire)} for p in parts
    ]
    return gate.end(found, parts=told)


# -- asking


def _proxy(url: str, key: str, parts: list[Part]) -> Iterator[Found]:
    asker = Asker(RealWorld(), url, key, whole_timeout_s=WHOLE_TIMEOUT_S)
    try:
        answer = asker.ask("GET", "/health", key="")
        yield _well("proxy", url, answer.status, answer.body)
        status = asker.ask("GET", "/status")
        if status.status != 200:
            yield Found(
                ERROR, "proxy", f"{url}/status answered {status}: give an operator's key (FAIRLEAD_OPS_KEY)"
            )
            return
        parts.append(_part(f"proxy {status.body['proxy_id']}", status.body))
        linked = 0
        for node in status.body["nodes"]:
            if node["connected"]:
                linked += 1
                software, wire = str(node["software"]), int(node["wire_version"])
                parts.append(
                    Part(
                        f"node {node['id']} (as the proxy sees it)",
                        software.partition("/")[2],
                        {},
                        (wire, wire),
                    )
                )
            last = node.get("last_end") or {}
            if not node["connected"] and last.get("reason") == "VERSION_MISMATCH":
                yield Found(ERROR, f"node {node['id']}", f"VERSION_MISMATCH: {last.get('detail', '')}")
        yield Found(OK if linked else WARNING, "nodes", f"{linked} of {len(status.body['nodes'])} linked")
    except NotAnswered as error:
        yield Found(ERROR, "proxy", str(error))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        yield Found(ERROR, "proxy", f"{url} is no ops port of this kind, or of an older version: {error!r}")
    finally:
        asker.close()


def _node(url: str, parts: list[Part]) -> Iterator[Found]:
    asker = Asker(RealWorld(), url, whole_timeout_s=WHOLE_TIMEOUT_S)
    try:
        answer = asker.ask("GET", "/health")
        yield _well("node", url, answer.status, answer.body)
        status = asker.ask("GET", "/status")
        parts.append(_part(f"node {status.body['node']}", status.body))
        queue = answer.body["queue"]
        full = queue["running"] + queue["waiting"] >= queue["capacity"]
        told = f"{queue['running']} running, {queue['waiting']} waiting, of {queue['capacity']}"
        yield Found(WARNING if full else OK, f"node {status.body['node']}: queue", told)
    except NotAnswered as error:
        yield Found(ERROR, "node", str(error))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        yield Found(ERROR, "node", f"{url} is no node's own port, or of an older version: {error!r}")
    finally:
        asker.close()


def _clients_port(url: str, path: str) -> Iterator[Found]:
    asker = Asker(RealWorld(), url, whole_timeout_s=WHOLE_TIMEOUT_S)
    try:
        answer = asker.ask("GET", path)
    except NotAnswered as error:
        yield Found(ERROR, "clients' port", str(error))
    else:
        good = answer.status < 500
        yield Found(OK if good else ERROR, "clients' port", f"{url}{path} answered {answer}")
    finally:
        asker.close()


def _well(what: str, url: str, status: int, body: Any) -> Found:
    said = str(body["status"])
    bad = ", ".join(
        f"{name} {each['reason']}" for name, each in body["checks"].items() if each["state"] != "ok"
    )
    level = ERROR if status != 200 else OK if said == "READY" else WARNING
    return Found(level, f"{what}: health", f"{url}: {said} {bad}".rstrip())


def _part(name: str, status: Mapping[str, Any]) -> Part:
    artifact = status["artifact"]
    wire = artifact["wire"]
    return Part(name, str(artifact["version"]), dict(artifact["build"]), (int(wire["min"]), int(wire["max"])))


# -- judging


def one_set(parts: Sequence[Part]) -> Iterator[Found]:
    """Versions of all that run, and whether each can speak with each."""
    if not parts:
        yield Found(ERROR, "versions", "nothing said which version it is")
        return
    versions = sorted({each.version for each in parts})
    if len(versions) == 1:
        yield Found(OK, "versions", f"{versions[0]} everywhere ({len(parts)} parts)")
    else:
        told = "; ".join(f"{each.name} {each.version}" for each in parts)
        yield Found(ERROR, "versions", f"a mixed set: {told}")
    low, high = max(each.wire[0] for each in parts), min(each.wire[1] for each in parts)
    if low > high:
        told = "; ".join(f"{each.name} {each.wire[0]}..{each.wire[1]}" for each in parts)
        yield Found(ERROR, "protocol", f"no wire version that all speak: {told}")
    else:
        yield Found(OK, "protocol", f"wire version {high}, spoken by all")


def built(parts: Sequence[Part], ref: str, sha: str, *, required: bool) -> Iterator[Found]:
    """From which artifact each was built; whether it is one, and the one that was meant."""
    told = [each for each in parts if "(as the proxy sees it)" not in each.name]
    for each in told:
        missing = [name for name in BUILD_FIELDS if not each.build.get(name)]
        where = f"{each.name}: artifact"
        if missing:
            level = ERROR if required or ref or sha else WARNING
            yield Found(
                level, where, f"does not say its {', '.join(missing)} (FAIRLEAD_BUILD_{missing[0].upper()})"
            )
        else:
            yield Found(OK, where, ", ".join(f"{name} {each.build[name]}" for name in BUILD_FIELDS))
        for name, wanted in (("ref", ref), ("sha", sha)):
            if wanted and not _same(name, each.build.get(name, ""), wanted):
                yield Found(
                    ERROR, where, f"its {name} is {each.build.get(name) or 'not known'}, not {wanted}"
                )
    shas = {each.build["sha"] for each in told if each.build.get("sha")}
    if len(shas) > 1:
        yield Found(ERROR, "artifacts", f"of {len(shas)} commits: {', '.join(sorted(shas))}")


def _same(name: str, said: str, wanted: str) -> bool:
    """A commit may be given short."""
    return said == wanted or (name == "sha" and len(wanted) >= 7 and said.startswith(wanted))


def beside(text: str, parts: Sequence[Part]) -> Iterator[Found]:
    """Whether a set that is not deployed yet can speak with what runs."""
    matched = _SET.fullmatch(text)
    if matched is None:
        yield Found(ERROR, "--with", f"{text!r} is not VERSION/MIN..MAX, as in {own_set()}")
        return
    low, high = int(matched["low"]), int(matched["high"] or matched["low"])
    if not parts:
        yield Found(ERROR, f"with {text}", "not known: nothing that runs said what it speaks")
    for each in parts:
        first, last = max(low, each.wire[0]), min(high, each.wire[1])
        where = f"with {text}: {each.name}"
        if first > last:
            yield Found(
                ERROR,
                where,
                f"VERSION_MISMATCH: it speaks {each.wire[0]}..{each.wire[1]}, the other {low}..{high}",
            )
        else:
            note = (
                "" if matched["version"] == each.version else f", a mixed set with {each.version} meanwhile"
            )
            yield Found(OK, where, f"would speak wire version {last}{note}")


def own_set() -> str:
    """This installation, as `--with` takes it."""
    return f"{VERSION}/{WIRE_VERSION_MIN}..{WIRE_VERSION_MAX}"
