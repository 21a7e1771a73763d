"""The example of docs/testing.md is run as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fairlead.testing import SimCluster

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/testing.md").read_text()


def test_the_example_runs_as_it_stands() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(example, "docs/testing.md", "exec"), names)
    (test,) = [value for name, value in names.items() if name.startswith("test_")]
    test()


def test_what_the_page_says_a_scenario_can_do_exists() -> None:
    for name in re.findall(r"`(?:await |run = await )?cluster\.(\w+)\(", TEXT):
        assert hasattr(SimCluster, name), name
