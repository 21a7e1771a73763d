"""What this build calls itself, in HELLO, /status and the command line; and where it came from, if its maker said so.

A build says where it came from in a file beside this one (`build.json`, which the wheel's build writes), or whoever
starts the process says it: FAIRLEAD_BUILD_REF, FAIRLEAD_BUILD_SHA, FAIRLEAD_BUILD_CREATED_AT. The environment wins, for
an image may be made of a wheel that knew less. What is neither is empty, and never guessed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from fairlead.protocol.limits import WIRE_VERSION_MAX, WIRE_VERSION_MIN

try:
    VERSION = version("fairlead")
except PackageNotFoundError:  # run from a tree that was never installed
    VERSION = "0.0.0"

SOFTWARE = f"fairlead/{VERSION}"

BUILD_FILE: Final = Path(__file__).with_name("build.json")
BUILD_NAMES: Final = {
    "ref": "FAIRLEAD_BUILD_REF", "sha": "FAIRLEAD_BUILD_SHA", "created_at": "FAIRLEAD_BUILD_CREATED_AT",
}  # fmt: skip
_FITS: Final = {
    "ref": re.compile(r"[\x21-\x7e]{1,200}"),
    "sha": re.compile(r"[0-9a-f]{7,64}"),
    "created_at": re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)", re.ASCII),
}


@dataclass(frozen=True, slots=True)
class Build:
    """Where a build came from: its ref (a tag, a branch, an image), its commit, when it was made. Empty: not known."""

    ref: str = ""
    sha: str = ""
    created_at: str = ""

    def told(self) -> dict[str, str]:
        """For /status and reports."""
        return asdict(self)


def build_of(environ: Mapping[str, str], written: Mapping[str, Any]) -> Build:
    """What the environment says, or else what the build wrote. What is malformed is left out, and so missed."""
    found = {}
    for name, variable in BUILD_NAMES.items():
        said = str(environ.get(variable) or written.get(name) or "")
        found[name] = said if _FITS[name].fullmatch(said) else ""
    return Build(**found)


def _written() -> Mapping[str, Any]:
    try:
        found = json.loads(BUILD_FILE.read_bytes())
    except (OSError, ValueError):  # most trees have none
        return {}
    return found if isinstance(found, dict) else {}


BUILD: Final = build_of(os.environ, _written())


def artifact() -> dict[str, Any]:
    """What a process says of its build in /status: deployments are compared by it (`fairlead verify-deployment`)."""
    return {
        "version": VERSION,
        "build": BUILD.told(),
        "wire": {"min": WIRE_VERSION_MIN, "max": WIRE_VERSION_MAX},
    }
