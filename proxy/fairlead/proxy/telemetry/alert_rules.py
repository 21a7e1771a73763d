"""Pure. Every alert: when it is true, for how long, of how many samples, how urgent, and what the operator does.

The table of the five runbooks' alerts, of the burn rates, and of what this program adds. docs/alerts.md and the rules
for Prometheus are generated from it, and the loop evaluates it; nothing else says when an alert fires.

Invariants: a share is judged only of so many samples that one failure alone is within it; a name of a runbook is
spelled as there; every alert has actions in order, which are commands of this program, and says where to look.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from fairlead.proxy.telemetry.alerting import Rule
from fairlead.proxy.telemetry.burn_rates import DAY_MS, HOUR_MS, MINUTE_MS, PAIRS, Severity, samples_min
from fairlead.proxy.telemetry.slo import JUDGED, WINDOWS_MS, Objectives, objectives_of, told_ms

HEARTBEAT: Final = "alert_heartbeat"
GUARD_UNAVAILABLE: Final = "alert_replay_guard_unavailable"
CHECK: Final = "check:"  # a reading that is a check of /health
BURN: Final = "burn:"  # one of a budget over a pair of windows
DEAD_LETTERS_GROWTH_MAX: Final = 3.0
DEAD_LETTERS_FLOOR: Final = 10 / 3  # a baseline below it counts as it: up to ten open ones are no growth

_STATUS: Final = "`fairlead ctl status`: the checks that are not ok say what is wrong."
_KILL: Final = "If it goes on: `fairlead ctl kill-switch on` stops acceptance and delivery everywhere."
_RUNS: Final = "`fairlead ctl runs --status FAILED` shows which command, node and reason stand out."
_DEAD: Final = "`fairlead ctl dlq groups`: what failed, by cause."


@dataclass(frozen=True, slots=True)
class Terms:
    """What the configuration says of the alerts."""

    objectives: Objectives = field(default_factory=Objectives)
    denial_rate_max: float = 0.1
    tenant_mismatch_rate_max: float = 0.02
    slo_cooldown_ms: int = 900_000
    repeat_ms: int = 4 * HOUR_MS
    heartbeat_ms: int = HOUR_MS


def rules(terms: Terms) -> tuple[Rule, ...]:
    """The whole table, most urgent first."""
    found = [
        *_dispatch(terms),
        *_replays(terms),
        *_outbox(terms),
        *_security(terms),
        *_workers(terms),
        *_budgets(terms),
        *_upkeep(terms),
    ]
    return tuple(sorted(found, key=lambda rule: list(Severity).index(rule.severity)))


def _above(share: float) -> int:
    """So many samples that one bad one alone is not above the share."""
    return samples_min(1 - share, 1.0)


def _series(metric: str) -> str:
    return f"/metrics/series?metric={metric}&window=6h&step=5m"


_SLO: Final = "/api/ops/reliability/slo"
_DLQ: Final = "/api/ops/reliability/dlq?groups=true"


def _dispatch(terms: Terms) -> Iterator[Rule]:
    objectives = terms.objectives
    yield Rule(
        "dispatch_slo_degraded", Severity.PAGE,
        f"more than {objectives.error_rate_max:.1%} of the runs fail, or their p95 is above {objectives.p95_ms_max} ms",
        "slo_degraded", above=1.0, window_ms=WINDOWS_MS[JUDGED], samples_min=objectives.samples_needed,
        cooldown_ms=terms.slo_cooldown_ms, keep_firing_ms=MINUTE_MS, event_type="dispatch_slo_degraded", source="000",
        actions=(
            "`fairlead ctl slo`: which of the two it is, since when, and what is recommended.",
            _RUNS,
            "A rollout is under way: `fairlead ctl rollout abort`, which goes one step back.",
            "Hardening is being enforced: set `[dispatch] rollout_mode = \"off\"` and `fairlead ctl reload`.",
            _KILL,
            f"Afterwards: {_DEAD} Replay what failed for a passing reason.",
        ),
        evidence=(_SLO, _series("runs"), "/api/runs?status=FAILED"),
    )  # fmt: skip
    yield Rule(
        "agent_success_rate", Severity.PAGE, "less than 98 % of the runs on nodes succeed", "run_success", below=0.98,
        window_ms=10 * MINUTE_MS, samples_min=_above(0.02), cooldown_ms=terms.repeat_ms, keep_firing_ms=MINUTE_MS,
        inhibited_by=("dispatch_slo_degraded",), source="001",
        actions=(_RUNS, "One node stands out: `fairlead ctl nodes pause ID`; its runs go elsewhere.",
                 "A new version stands out: `fairlead ctl rollout abort`.", _DEAD),
        evidence=(_series("runs"), "/api/runs?status=FAILED"),
    )  # fmt: skip
    yield Rule(
        "run_success_rate", Severity.WARN, "less than 90 % of the runs complete", "run_success", below=0.90,
        window_ms=10 * MINUTE_MS, for_ms=30 * MINUTE_MS, samples_min=_above(0.10), cooldown_ms=terms.repeat_ms,
        keep_firing_ms=5 * MINUTE_MS, inhibited_by=("dispatch_slo_degraded", "agent_success_rate"), source="004",
        actions=(_RUNS, _DEAD, "Replay what failed for a passing reason: `fairlead ctl dlq replay --dry-run` first."),
        evidence=("/ops/metrics", _series("runs")),
    )  # fmt: skip
    yield Rule(
        "resource_exhaustion", Severity.PAGE, "something that is bounded is nearly used up", "resources", above=0.9,
        for_ms=MINUTE_MS, window_ms=MINUTE_MS, cooldown_ms=terms.repeat_ms, keep_firing_ms=MINUTE_MS, source="001",
        actions=(
            "The detail names it: disk, files, the outbox or the store's queue.",
            "Disk: free some, or shorten `[dispatch] retention_hours`. Files: raise the limit of open files.",
            "Outbox: `fairlead ctl nodes`: is there a node that takes runs? Add one, or `fairlead ctl agents drain`.",
        ),
        evidence=("/status", "/health/test"),
    )  # fmt: skip
    yield Rule(
        "performance_degradation", Severity.INVESTIGATE, "the p95 of the last hour is twice that of the day",
        "slowdown", above=2.0, window_ms=HOUR_MS, for_ms=15 * MINUTE_MS, samples_min=50, cooldown_ms=DAY_MS,
        keep_firing_ms=10 * MINUTE_MS, inhibited_by=("dispatch_slo_degraded",), source="001",
        actions=("`fairlead ctl slo`: compare the windows.", "`fairlead ctl status`: lag, circuits, store.",
                 "Compare nodes: `fairlead ctl nodes`."),
        evidence=(_SLO, _series("runs"), _series("outbox_lag")),
    )  # fmt: skip


def _replays(terms: Terms) -> Iterator[Rule]:
    stop = "Stop it: `fairlead ctl agents pause --tenant TENANT`, or the flag dlq.replay.enabled off."
    yield Rule(
        "dlq_replay_failed", Severity.WARN, "a replay of a dead letter failed", "replay_failures", above=0.0,
        window_ms=5 * MINUTE_MS, cooldown_ms=terms.slo_cooldown_ms, keep_firing_ms=MINUTE_MS,
        inhibited_by=("replay_failure_rate_page",), event_type="dlq_replay_failed", source="000",
        actions=("`fairlead ctl dlq worker`: its counters, and what it says of failures.", _DEAD,
                 "What fails again for the same reason: mend that first.", stop),
        evidence=("/api/ops/reliability/dlq/replay-worker", _DLQ, _series("replays")),
    )  # fmt: skip
    for severity, name, share, inhibited in (
        (Severity.PAGE, "replay_failure_rate_page", 0.4, ()),
        (Severity.WARN, "replay_failure_rate_warn", 0.2, ("replay_failure_rate_page",)),
    ):
        yield Rule(
            name, severity, f"more than {share:.0%} of the replays fail", "replay_failure_rate", above=share,
            window_ms=5 * MINUTE_MS, samples_min=_above(share), cooldown_ms=terms.repeat_ms, keep_firing_ms=MINUTE_MS,
            inhibited_by=inhibited, source="001",
            actions=(stop, _DEAD, "`fairlead ctl dlq show ID`: every run of one, with its reason."),
            evidence=(_series("replays"), _DLQ),
        )  # fmt: skip
    yield Rule(
        "retry_success_rate", Severity.WARN, "less than 70 % of retries and replays succeed", "replay_success",
        below=0.70, window_ms=10 * MINUTE_MS, for_ms=30 * MINUTE_MS, samples_min=_above(0.30),
        cooldown_ms=terms.repeat_ms, keep_firing_ms=5 * MINUTE_MS,
        inhibited_by=("replay_failure_rate_page", "replay_failure_rate_warn"), source="004",
        actions=(_DEAD, "Retry only what failed for a passing reason.", _RUNS),
        evidence=("/ops/metrics", _series("replays")),
    )  # fmt: skip
    yield Rule(
        "dead_letters_growing", Severity.WARN, "three times as many open dead letters as in the six hours before",
        "dead_letter_growth", above=DEAD_LETTERS_GROWTH_MAX, window_ms=10 * MINUTE_MS, for_ms=MINUTE_MS,
        cooldown_ms=terms.repeat_ms, keep_firing_ms=5 * MINUTE_MS, source="001",
        actions=(_DEAD, _RUNS, "Once the cause is gone: `fairlead ctl dlq replay --dry-run`, then without."),
        evidence=(_DLQ, _series("dead_letters_open")),
    )  # fmt: skip


def _outbox(terms: Terms) -> Iterator[Rule]:
    for severity, name, seconds, inhibited in (
        (Severity.PAGE, "outbox_lag_page", 5.0, ()),
        (Severity.WARN, "outbox_lag_warn", 2.0, ("outbox_lag_page",)),
    ):
        yield Rule(
            name, severity, f"runs are delivered more than {seconds:g} s after they were due (p95)", "outbox_lag_s",
            above=seconds, window_ms=10 * MINUTE_MS, cooldown_ms=terms.repeat_ms, keep_firing_ms=MINUTE_MS,
            inhibited_by=(*inhibited, "store_unavailable"), source="001",
            actions=(
                "`fairlead ctl nodes`: is there one that takes runs? Resume or undrain it, or add one.",
                "`fairlead ctl agents`: is somebody paused? Is the flag outbox.enabled off, or the kill switch on?",
                "`fairlead ctl status`: circuits, retry budget, the store's queue.",
            ),
            evidence=("/status", _series("outbox_lag")),
        )  # fmt: skip


def _security(terms: Terms) -> Iterator[Rule]:
    yield Rule(
        GUARD_UNAVAILABLE, Severity.PAGE, "replay guards cannot be written: signed requests are refused",
        "guard_unavailable", above=0.0, window_ms=5 * MINUTE_MS, cooldown_ms=terms.repeat_ms, keep_firing_ms=MINUTE_MS,
        source="002",
        actions=(
            "Have callers stop retrying privileged commands; they fail closed meanwhile.",
            "`GET /health/test`: does the store take and return rows? `fairlead check schema-preflight`.",
            "It may be full: `fairlead replay-guards prune`, then with --apply; or raise `[dispatch] max_nonces`.",
            "`fairlead check release-readiness`, `fairlead check env-matrix` and `fairlead check prod-gate`.",
            "Resume only once a replayed request is refused again: `fairlead drill`.",
        ),
        evidence=("/metrics/reasons", "/health/test", _series("rejects")),
    )  # fmt: skip
    yield Rule(
        "alert_denial_spike", Severity.WARN,
        f"more than {terms.denial_rate_max:.1%} of the requests are refused for security", "denial_rate",
        above=terms.denial_rate_max, window_ms=5 * MINUTE_MS, samples_min=max(20, _above(terms.denial_rate_max)),
        cooldown_ms=terms.repeat_ms, keep_firing_ms=MINUTE_MS,
        inhibited_by=(GUARD_UNAVAILABLE, "alert_tenant_mismatch_spike"), source="002",
        actions=(
            "`GET /metrics/reasons`: which family and reason it is.",
            "`GET /metrics/series?metric=rejects`: since when.",
            "`fairlead check reason-codes` and `fairlead check security-parity`: has a contract drifted?",
            "Callers send what is malformed: tell them; `[access] deny` and `[rate_limits]` slow them down.",
            "A change of ours: roll it back, then `fairlead check release-readiness`.",
        ),
        evidence=("/metrics/reasons", _series("rejects")),
    )  # fmt: skip
    yield Rule(
        "alert_tenant_mismatch_spike", Severity.PAGE,
        f"more than {terms.tenant_mismatch_rate_max:.1%} of the requests ask for another tenant's data",
        "tenant_mismatch_rate", above=terms.tenant_mismatch_rate_max, window_ms=5 * MINUTE_MS,
        samples_min=max(20, _above(terms.tenant_mismatch_rate_max)), cooldown_ms=terms.repeat_ms,
        keep_firing_ms=MINUTE_MS, source="002",
        actions=(
            "`fairlead ctl audit tail`: who asks, and how they proved who they are. Compare `[jwt] tenant_claim`.",
            "Compare the read scopes (self, tenant, any) of `fairlead ctl keys` and `[jwt] read_scope_claim`.",
            "Which deployment touched identity or reads lately?",
            "`fairlead check security-parity` and `fairlead check prod-gate`.",
            "If data may have leaked: leave it refusing, revoke the key (`fairlead ctl keys revoke ID`), escalate.",
        ),
        evidence=("/metrics/reasons", "/api/ops/reliability/audit?limit=100", _series("rejects")),
    )  # fmt: skip
    yield Rule(
        "rate_limit_violations", Severity.WARN, "more than 10 calls were refused by rate limits", "rate_limited",
        above=10.0, window_ms=5 * MINUTE_MS, cooldown_ms=terms.repeat_ms, keep_firing_ms=MINUTE_MS, source="001",
        actions=("`GET /metrics/reasons`: which limit; the log names the caller.",
                 "A caller in a loop: tell them. A caller in the right: raise the limit.",
                 "In an emergency: `fairlead ctl rate-limits clear replay:`."),
        evidence=("/metrics/reasons", _series("rejects")),
    )  # fmt: skip
    yield Rule(
        "idempotency_collisions", Severity.INVESTIGATE, "more than 1 % of the submissions reuse a key of others",
        "idempotency_collisions", above=0.01, window_ms=DAY_MS, samples_min=_above(0.01), cooldown_ms=DAY_MS,
        keep_firing_ms=HOUR_MS, source="001",
        actions=("`GET /metrics/series?metric=rejects&name=IDEMPOTENCY_KEY_REUSED`: since when.",
                 "Find the caller in the log; a key belongs to one request, and a new request needs a new one."),
        evidence=(_series("rejects"),),
    )  # fmt: skip


def _workers(terms: Terms) -> Iterator[Rule]:
    yield Rule(
        "heartbeat_stale_ratio", Severity.PAGE, "more than a quarter of the running runs have no heartbeat",
        "heartbeat_stale", above=0.25, window_ms=MINUTE_MS, for_ms=5 * MINUTE_MS, samples_min=_above(0.25),
        cooldown_ms=terms.repeat_ms, keep_firing_ms=MINUTE_MS, source="004",
        actions=("`fairlead ctl nodes`: which one is gone, or does not answer.",
                 "Restart that node: what it holds is delivered again, and nothing runs twice.",
                 "Not coming back: its runs are taken over once their leases have run out."),
        evidence=("/ops/metrics", "/api/runs?status=RUNNING"),
    )  # fmt: skip
    yield Rule(
        "callback_failed_ratio", Severity.WARN, "more than 10 % of the attempts at callbacks fail",
        "callback_failures", above=0.10, window_ms=5 * MINUTE_MS, for_ms=10 * MINUTE_MS, samples_min=_above(0.10),
        cooldown_ms=terms.repeat_ms, keep_firing_ms=MINUTE_MS, source="004",
        actions=("The log names the hosts (CALLBACK_NOT_DELIVERED): is one of them down, or its certificate over?",
                 "Signatures refused? `fairlead ctl status`: which secret callbacks are signed with.",
                 "Once it answers: `fairlead callbacks replay`."),
        evidence=("/ops/metrics", _series("callback_attempts")),
    )  # fmt: skip
    yield Rule(
        "node_desync", Severity.WARN, "a linked node does not have the registry", f"{CHECK}registry", above=0.0,
        window_ms=MINUTE_MS, for_ms=MINUTE_MS, cooldown_ms=terms.repeat_ms, keep_firing_ms=10_000, source="003",
        actions=("`fairlead ctl nodes`: desired and acknowledged generation.", "`fairlead ctl nodes resync ID`.",
                 "It refuses what it is sent: its log says why; compare versions of node and proxy."),
        evidence=("/api/nodes", "/api/commands"),
    )  # fmt: skip


def _budgets(terms: Terms) -> Iterator[Rule]:
    for name, (metric, share) in objectives_of(terms.objectives).items():
        for index, pair in enumerate(PAIRS):
            yield Rule(
                burn_name(name, index), pair.severity,
                f"the budget of {name} ({share:.1%}) goes {pair.burn_rate:g} times too fast, over"
                f" {told_ms(pair.long_ms)} and {told_ms(pair.short_ms)}",
                f"{BURN}{name}:{index}", above=pair.burn_rate, window_ms=pair.long_ms,
                samples_min=samples_min(share, pair.burn_rate), cooldown_ms=terms.repeat_ms,
                keep_firing_ms=MINUTE_MS, inhibited_by=tuple(burn_name(name, each) for each in range(index)),
                source="004",
                actions=(_BURN_FIRST[name], "`fairlead ctl slo`: every budget, and how fast it goes.",
                         "Nothing new until it is over: `fairlead ctl rollout` shows what is under way."),
                evidence=(_SLO, _series(metric)),
            )  # fmt: skip


_BURN_FIRST: Final = {
    "availability": "`fairlead ctl status` and the log: what answers 5xx, and why.",
    "callbacks": "The log names the hosts (CALLBACK_DEAD); then `fairlead callbacks replay`.",
    "completion": _RUNS,
}


def burn_name(objective: str, index: int) -> str:
    """The alert of a budget over a pair of windows."""
    return f"slo_burn_{objective}_{told_ms(PAIRS[index].long_ms).replace(' ', '')}"


def _upkeep(terms: Terms) -> Iterator[Rule]:
    for name, check, severity, summary, wait_ms, source, actions in (
        ("store_unavailable", "store", Severity.PAGE, "the store does not take what is written", 15_000, "004",
         ("`GET /health/test`: store and disk, with timings.", "Disk full? Database down? Start it again.",
          "Nothing that was accepted is lost: nodes keep what they owe.")),
        ("secret_expiry", "keys", Severity.WARN, "a peer would be cut off when the previous secret ends", MINUTE_MS,
         "002", ("`fairlead ctl status`: who is still on it.", "Give them the current one.",
                 "Not in time: move `proxy_secret_previous_expires_at`, then `fairlead ctl reload`.")),
        ("certificate_expiry", "certificates", Severity.WARN, "a certificate runs out, or cannot be used", MINUTE_MS,
         "003", ("The detail names it.", "Put the new one in its place: it is taken without a restart.",
                 "It was, and is not used: the detail says what is wrong with it.")),
        ("audit_gap", "audit chain", Severity.INVESTIGATE, "the audit trail is not as it was written", 0, "001",
         ("`fairlead ctl audit verify`: from which row on.", "Compare with the file beside the database.",
          "Somebody wrote to the database: treat it as an incident.")),
        ("audit_file_gap", "audit file", Severity.INVESTIGATE, "the audit file cannot be written", MINUTE_MS, "001",
         ("The detail says why: disk, or rights of the file.", "The trail in the database goes on meanwhile.")),
    ):  # fmt: skip
        yield Rule(
            name, severity, summary, f"{CHECK}{check}", above=0.0, window_ms=MINUTE_MS, for_ms=wait_ms,
            cooldown_ms=terms.repeat_ms, keep_firing_ms=10_000, source=source, actions=actions, evidence=("/health",),
        )  # fmt: skip
    yield Rule(
        HEARTBEAT, Severity.INVESTIGATE, "alerts are evaluated and told; that this stops coming is the alert",
        "heartbeat", cooldown_ms=terms.heartbeat_ms, is_heartbeat=True, source="",
        actions=("It comes: nothing.", "It stays away: is the proxy running, and does the webhook answer?", _STATUS),
        evidence=("/health", "/api/alerts"),
    )  # fmt: skip
