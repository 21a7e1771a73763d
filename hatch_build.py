"""Writes into a wheel where it came from: ref, commit and time, as `fairlead verify-deployment` compares them.

FAIRLEAD_BUILD_REF, FAIRLEAD_BUILD_SHA and FAIRLEAD_BUILD_CREATED_AT say it; what they do not say, Git does. An editable
installation has none: what it runs is the tree, which may have changed since.
"""

from __future__ import annotations

import json
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

INSIDE = "fairlead/runtime/build.json"


class BuildMetadataHook(BuildHookInterface):
    """Adds one file to the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        made = Path(self.directory) / "build.json"
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_text(json.dumps(self._found()) + "\n")
        build_data["force_include"][str(made)] = INSIDE

    def _found(self) -> dict[str, str]:
        epoch = os.environ.get("SOURCE_DATE_EPOCH")
        at = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
        return {
            "ref": os.environ.get("FAIRLEAD_BUILD_REF")
            or self._git("describe", "--tags", "--always", "--dirty"),
            "sha": os.environ.get("FAIRLEAD_BUILD_SHA") or self._git("rev-parse", "HEAD"),
            "created_at": os.environ.get("FAIRLEAD_BUILD_CREATED_AT") or at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }

    def _git(self, *arguments: str) -> str:
        """What Git says; nothing where it cannot, as from an archive of sources."""
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=self.root, capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return ""
        return done.stdout.strip()
