"""`fairlead check leaks FILE...`: whether files hold a secret.

Exit status: 0 none does, 1 one does, or cannot be read. Archives (.tar, .tar.gz) are looked into, file by
file. The secrets that are looked for are those of this environment and
of the configurations that are named, beside what looks like one.
"""

from __future__ import annotations

import argparse
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli

from fairlead.cli.findings import Found, Gate
from fairlead.cli.leaks import Known, find, known, secrets_of_environment, secrets_of_settings
from fairlead.protocol.keys import Role, derive
from fairlead.runtime.secret import decode_secret


def run(options: argparse.Namespace) -> int:
    secrets = known_secrets((*options.proxy_config, *options.node_config), os.environ)
    gate = Gate("leaks", options)
    found: list[Found] = []
    for path in options.files:
        try:
            for name, data in contents(path):
                leaks = find(data, secrets)
                found += [Found("error", name, str(leak)) for leak in leaks] or [
                    Found("ok", name, "holds none")
                ]
        except (OSError, tarfile.TarError, EOFError) as problem:
            found.append(Found("error", path, f"cannot be read: {problem}"))
    return gate.end(found, quiet_ok=True, known=len(secrets))


def contents(path: str) -> Iterator[tuple[str, bytes]]:
    """A file, or each file in an archive."""
    if path.endswith((".tar", ".tar.gz", ".tgz")):
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() else None
                if file is not None:
                    yield f"{path}:{member.name}", file.read()
    else:
        yield path, Path(path).read_bytes()


def known_secrets(configurations: Sequence[str], environ: Mapping[str, str]) -> list[Known]:
    """Of environment and configurations, with the keys that are derived for the nodes that they name."""
    found = list(secrets_of_environment(environ))
    for path in configurations:
        data = tomli.loads(Path(path).read_text())
        found += secrets_of_settings(data, _text)
    fleet = [
        environ.get("SECURITY_PROXY_SECRET", ""), environ.get("FAIRLEAD_PROXY_SECRET", ""),
    ]  # fmt: skip
    names = {name for path in configurations for name in _node_ids(tomli.loads(Path(path).read_text()))}
    for text in filter(None, fleet):
        secret = decode_secret(text)
        for name in names if isinstance(secret, bytes) else ():
            assert isinstance(secret, bytes)
            made = known(f"the key of node {name}", derive(secret, Role.NODE, name, 0).psk.hex())
            found += [made] if made is not None else []
    return found


def _node_ids(data: Mapping[str, Any]) -> Iterator[str]:
    for table in ("nodes", "backends"):
        for each in data.get(table, ()):
            name = each.get("node") or each.get("id", "")
            if name and not name.endswith("*"):
                yield name
    if isinstance(data.get("server_id"), str):
        yield data["server_id"]


def _text(path: str) -> str:
    """A file of a secret; one that is not there has none that could leak."""
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError):
        return ""
