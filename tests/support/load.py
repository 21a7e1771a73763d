"""Callers that submit over HTTP, insist until they are answered, and remember what they were told."""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections.abc import Sequence
from typing import Any

from tests.support.processes import PROXY, Fleet, http_call


class Caller(threading.Thread):
    """Submits commands one after another; what it was told is what it holds us to."""

    def __init__(
        self,
        fleet: Fleet,
        number: int,
        stop: threading.Event,
        *,
        seed: int,
        at: Sequence[str] = (PROXY,),
        targets: Sequence[str] = ("any",),
        deadline_ms: int = 120_000,
        pause_s: float = 0.02,
    ) -> None:
        super().__init__(name=f"caller-{number}", daemon=True)
        self._fleet, self._number, self._halt = fleet, number, stop
        self._random = random.Random(seed * 1_000 + number)
        self._at, self._targets, self._deadline_ms, self._pause_s = list(at), targets, deadline_ms, pause_s
        self.accepted: dict[str, tuple[str, str]] = {}  # idempotency key -> (run id, command)
        self.problems: list[str] = []

    def run(self) -> None:
        count = 0
        while not self._halt.is_set():
            count += 1
            self._submit(f"caller-{self._number}-{count}")
            time.sleep(self._random.random() * self._pause_s)

    def _draw(self, key: str) -> tuple[str, dict[str, Any]]:
        draw = self._random.random()
        if draw < 0.6:
            return "demo:add", {"key": "apples", "amount": 1}
        if draw < 0.75:
            return "demo:announce", {"message": key}
        if draw < 0.85:
            return "demo:fail", {"transient": True}
        return "demo:sleep", {"ms": self._random.randrange(200)}

    def _submit(self, key: str) -> None:
        command, arguments = self._draw(key)
        target = self._random.choice(self._targets)
        body = {
            "command": command, "args": arguments, "target": target, "idempotency_key": key,
            "deadline_ms": self._deadline_ms,
        }  # fmt: skip
        headers = {"x-ops-key": self._fleet.ops_key}
        if self._random.random() < 0.3:
            headers["prefer"] = "wait=1"
        at = self._random.choice(self._at)
        while True:
            try:
                port = self._fleet.ops_ports[at]
                answer = http_call(port, "POST", "/api/dispatch", body, headers, timeout_s=5)
            except (OSError, http.client.HTTPException):
                time.sleep(0.03)  # killed under us: whether it was accepted is what the key finds out
                at = self._random.choice(self._at)
                continue
            if answer.status in (200, 202):
                self.accepted[key] = (answer.json()["run_id"], command)
                return
            if answer.status == 404 and target == "all":
                return  # no node is linked at this moment: nothing was accepted
            if answer.status == 503:
                time.sleep(0.05)
                continue
            self.problems.append(f"{key}: {answer.status} {answer.body[:300]!r}")
            return
