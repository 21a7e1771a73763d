"""Virtual environments for peers whose pins must not disturb ours: made on first use, beside our own, and kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(sys.prefix) / "bench-peers"
PACKAGES = {
    "aiohttp": ["aiohttp>=3.12"],
    "mitmproxy": ["mitmproxy>=11"],
    "starlette": ["starlette>=0.46", "httpx>=0.28", "uvicorn[standard]>=0.34"],
}


def ensure(name: str) -> Path:
    """The environment's folder of programs."""
    folder = FOLDER / name
    stamp = folder / ".complete"
    if not stamp.exists():
        print(f"  installing {name} into {folder} (first time only) ...", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(folder / "bin/python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        done = subprocess.run([*pip, *PACKAGES[name]], check=False)
        if done.returncode:
            raise RuntimeError(f"{name} could not be installed: can pip reach PyPI (or your mirror)?")
        stamp.touch()
    return folder / "bin"
