"""What trust costs for one run: sealing it, verifying it when it is handed out, and the trust token of its delivery.

    python -m bench seals

CPU of one call each, the median of rounds; nothing waits for anything here.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from fairlead.protocol.keys import Role, derive
from fairlead.protocol.messages import Deliver, Identity
from fairlead.protocol.trust import TTL_MS_DEFAULT, TrustJudge, link_trust_key, make
from fairlead.proxy.store import sealed_runs
from fairlead.proxy.store.records import Assignment, NewRun, RunStatus
from fairlead.proxy.store.seals import Seals

ROUNDS, CALLS = 7, 20_000
NOW_MS: Final = 1_800_000_000_000
SECRET: Final = b"bench" * 8
IDENTITY: Final = Identity(
    "checkout", "service", ("operator",), ("dispatch",), "shop", "", "key:018f", "tenant", ""
)
RUN: Final = NewRun(
    "018f6b5e-7a1c-7d43-9f5e-0123456789ab", "shop", "shop:order", "transactional", b'{"order":"1234567890","amount":3}',
    "any", "", msgspec.json.encode(IDENTITY), "corr-0123456789", NOW_MS, NOW_MS + 60_000, 30_000,
    assignment=Assignment("node-1", "018f6b5e-7a1c-7d43-9f5e-ba9876543210", 30_000),
)  # fmt: skip


def each_us(call: Callable[[], Any]) -> float:
    """Microseconds of CPU for one call."""
    found = []
    for _ in range(ROUNDS):
        began_ns = time.process_time_ns()
        for _ in range(CALLS):
            call()
        found.append((time.process_time_ns() - began_ns) / CALLS / 1_000)
    return round(statistics.median(found), 2)


def measure() -> dict[str, float]:
    seals = Seals(SECRET)
    whole, stands = sealed_runs.seals_of(seals, RUN, RunStatus.RUNNING)
    given = RUN.assignment
    assert given is not None
    by_name: dict[str, Any] = {
        **{name: getattr(RUN, name, "") for name in sealed_runs.RUN_COLUMNS},
        "root_id": RUN.run_id, "status": "RUNNING", "fence": 1, "node_id": given.node_id,
        "incarnation": given.incarnation, "target_node": "", "seal": whole, "delivery_seal": stands,
    }  # fmt: skip
    row = [by_name.get(name, 0) for name in sealed_runs.HANDED_COLUMNS.split(", ")]
    assert sealed_runs.holds(seals, row)
    key = link_trust_key(derive(SECRET, Role.NODE, given.node_id, 0).psk)
    delivery = Deliver(
        RUN.run_id, RUN.run_id, 1, RUN.command, bytes(32), RUN.args_json, IDENTITY, RUN.tenant, RUN.deadline_at_ms,
        RUN.timeout_ms, RUN.accepted_at_ms, False, RUN.correlation_id,
    )  # fmt: skip
    judge = TrustJudge([key], given.node_id, given.incarnation, TTL_MS_DEFAULT, 120_000)

    def token() -> Deliver:
        made = make(key, delivery, given.node_id, given.incarnation, NOW_MS, TTL_MS_DEFAULT)
        msgspec.structs.force_setattr(delivery, "trust", made)
        return delivery

    trusted = token()
    assert judge.judge(trusted, NOW_MS) is None
    large = msgspec.structs.replace(delivery, args_json=b"x" * 32_768)
    large = msgspec.structs.replace(
        large, trust=make(key, large, given.node_id, given.incarnation, NOW_MS, TTL_MS_DEFAULT)
    )
    assert judge.judge(large, NOW_MS) is None
    return {
        "seal_run_us": each_us(lambda: sealed_runs.seals_of(seals, RUN, RunStatus.RUNNING)),
        "verify_run_us": each_us(lambda: sealed_runs.holds(seals, row)),
        "make_token_us": each_us(token),
        "judge_token_us": each_us(lambda: judge.judge(trusted, NOW_MS)),
        "judge_token_32_kib_us": each_us(lambda: judge.judge(large, NOW_MS)),
    }
