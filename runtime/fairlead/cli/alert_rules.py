"""`fairlead check alert-rules`: docs/alerts.md and the rules for Prometheus, both generated from the one table.

Whoever has a Prometheus keeps it: the proxy exposes what each alert goes by (`fairlead_alert_reading`), of how many
samples, and the rules compare that as the proxy does. Silences and inhibition are Alertmanager's there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final

from fairlead.proxy.telemetry.alert_rules import Terms, rules
from fairlead.proxy.telemetry.alerting import Rule
from fairlead.proxy.telemetry.burn_rates import Severity
from fairlead.proxy.telemetry.telling import conditions
from fairlead.runtime.process import EXIT_FAILED, EXIT_STOPPED

PAGE: Final = Path("docs/alerts.md")
PROMETHEUS: Final = Path("docs/alerts.prometheus.yml")
_WHEN: Final = {
    Severity.PAGE: "now, whoever sleeps", Severity.WARN: "today", Severity.INVESTIGATE: "when there is time",
}  # fmt: skip


def add_to(checks: Any) -> None:
    """Add the check."""
    verb = checks.add_parser(
        "alert-rules",
        help="whether the page of the alerts and the rules for Prometheus are those of the table",
    )
    verb.add_argument("--prometheus", action="store_true", help=f"write {PROMETHEUS}")
    verb.add_argument("--markdown", action="store_true", help=f"write {PAGE}")
    verb.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    wanted = {PROMETHEUS: prometheus(), PAGE: markdown()}
    chosen = [path for path, asked in ((PROMETHEUS, options.prometheus), (PAGE, options.markdown)) if asked]
    for path in chosen:
        path.write_text(wanted[path])
        print(f"{path}: written, {len(rules(Terms()))} alerts")
    if chosen:
        return EXIT_STOPPED
    differing = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    for path in differing:
        print(f"ERROR {path} is not what the table says: fairlead check alert-rules --prometheus --markdown")
    print(f"alert-rules: {len(rules(Terms()))} alerts, {len(differing)} files differ")
    return EXIT_FAILED if differing else EXIT_STOPPED


def prometheus() -> str:
    """A rules file. JSON strings are YAML strings, so nothing in a text can break it."""
    lines = [
        "# Generated from proxy/fairlead/proxy/telemetry/alert_rules.py by `fairlead check alert-rules --prometheus`.",
        "# With the thresholds of a proxy that sets none of its own.",
        "groups:",
        "  - name: fairlead",
        "    rules:",
    ]
    for rule in rules(Terms()):
        lines += [
            f"      - alert: {rule.name}",
            f"        expr: {json.dumps(_expression(rule))}",
            f"        for: {max(rule.for_ms, 300_000 if rule.is_heartbeat else 0) // 1000}s",
            "        labels:",
            f"          severity: {Severity.PAGE.value if rule.is_heartbeat else rule.severity.value}",
            "        annotations:",
            f"          summary: {json.dumps(rule.summary)}",
            f"          actions: {json.dumps(_numbered(rule, ' '))}",
            f"          evidence: {json.dumps(', '.join(rule.evidence))}",
        ]
    return "\n".join(lines) + "\n"


def _expression(rule: Rule) -> str:
    of = f'{{name="{rule.name}"}}'
    if rule.is_heartbeat:
        return f"absent(fairlead_alert_reading{of})"
    compared = f"> {rule.above:g}" if rule.above is not None else f"< {rule.below:g}"
    expression = f"fairlead_alert_reading{of} {compared}"
    if rule.samples_min > 1:
        expression += f" and fairlead_alert_samples{of} >= {rule.samples_min}"
    return expression


def markdown() -> str:
    """docs/alerts.md."""
    lines = [
        "# Alerts", "",
        "Generated from `proxy/fairlead/proxy/telemetry/alert_rules.py` by `fairlead check alert-rules --markdown`."
        " `docs/alerts.prometheus.yml` is the same table for Prometheus.", "",
        "`fairlead ctl alerts` shows what fires, with these actions. Thresholds are the defaults of `[slo]` and"
        " `[alerts]`. An alert that is muted by another fires all the same, and is not told; its end is told only if it"
        " was. Too few samples are no data: nothing fires and nothing ends.", "",
        "| alert | look | when | runbook |", "| --- | --- | --- | --- |",
        *(f"| [{rule.name}](#{rule.name}) | {_WHEN[rule.severity]} | {conditions(rule)} | {rule.source or '-'} |"
          for rule in rules(Terms())),
    ]  # fmt: skip
    for rule in rules(Terms()):
        lines += ["", f"## {rule.name}", "", f"{rule.summary[0].upper()}{rule.summary[1:]}.", "",
                  f"- Fires: {conditions(rule)} ({rule.severity.value})"]  # fmt: skip
        if rule.inhibited_by:
            lines.append(f"- Muted while these fire: {', '.join(rule.inhibited_by)}")
        lines += [f"- Look at: {', '.join(f'`{each}`' for each in rule.evidence)}", "", _numbered(rule, "\n")]
    return "\n".join(lines) + "\n"


def _numbered(rule: Rule, between: str) -> str:
    return between.join(f"{number}. {text}" for number, text in enumerate(rule.actions, 1))
