"""What this build calls itself, in HELLO, /status and the command line."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("fairlead")
except PackageNotFoundError:  # run from a tree that was never installed
    VERSION = "0.0.0"

SOFTWARE = f"fairlead/{VERSION}"
