"""The tables of `proxy.toml` about rolling out and watching: objectives, alerts.

As `config_sections`: each key with its default, its range and its description, which `configs/proxy.toml` repeats.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from fairlead.runtime.addresses import read_url
from fairlead.runtime.config_model import DAY_MS, FileName, Secret, Section, Unfit, decoded


def _check_webhook(url: str) -> str:
    if url and isinstance(problem := read_url(url), str):
        raise Unfit(f"{problem} (allowed: like https://alerts.example/hook, or empty)", "correct it")
    return url


WebhookUrl = Annotated[str, AfterValidator(_check_webhook)]


class AlertKeys(Section):
    """The keys of [reliability] about telling alerts."""

    alerts_enabled: bool = False
    """Whether alerts are told. They are evaluated and shown in any case."""
    alerts_console: bool = True
    """Whether they are told in the log, where they are told."""
    alerts_webhook_url: WebhookUrl = ""
    """Where they are posted, where they are told. An internal address is fine. Empty: nowhere."""
    alerts_webhook_timeout_ms: int = Field(3_000, ge=100, le=30_000)
    """Time for that receiver to be found, reached and to answer. Then it is tried again later."""
    alerts_webhook_secret: Secret | None = None
    """The secret that posted alerts are signed with (x-reliability-signature). Without it they are not signed."""
    alerts_webhook_secret_file: FileName | None = None
    """A file (mode 600) with that secret, instead of alerts_webhook_secret."""
    alerts_webhook_format: Literal["v1", "slack"] = "v1"
    """The body: our own schema (v1), or a text that Slack and what is compatible with it show."""

    @property
    def alerts_secret(self) -> bytes | None:
        """The secret's bytes, if there is one."""
        return decoded(self.alerts_webhook_secret)


class Slo(Section):
    """[slo]: what is promised, and when a rollout goes on or back."""

    max_error_rate: float = Field(0.05, gt=0, le=1)
    """Share of failed runs above which dispatch is degraded and a rollout goes back."""
    max_p95_ms: int = Field(2_500, ge=1, le=3_600_000)
    """95th percentile, from when a run is due to its end, above which it is the same."""
    alert_min_samples: int = Field(0, ge=0, le=1_000_000)
    """Runs in the window below which nothing is concluded. 0: so many that one failure alone is within the rate."""
    alert_cooldown_ms: int = Field(900_000, ge=1_000, le=7 * DAY_MS)
    """Time after which dispatch that is still degraded is told again."""
    persistence_enabled: bool = True
    """Whether samples are kept in the store. Without it they begin anew with each start."""
    max_persisted_samples: int = Field(5_000, ge=10, le=43_200)
    """One-minute samples that are kept of each series; older ones become hours, kept for 30 days."""
    availability_objective: float = Field(0.995, gt=0, lt=1)
    """Share of calls on the ops port that must not fail on our side (5xx)."""
    callback_objective: float = Field(0.99, gt=0, lt=1)
    """Share of callbacks that must be delivered."""
    completion_objective: float = Field(0.95, gt=0, lt=1)
    """Share of runs that must complete, replays aside."""
    latency_p95_ms: int = Field(600, ge=1, le=3_600_000)
    """95th percentile of calls on the ops port, those aside that ask to wait."""


class Alerts(Section):
    """[alerts]: thresholds that the runbooks leave open."""

    interval_ms: int = Field(5_000, ge=100, le=60_000)
    """How often alerts are evaluated."""
    max_denial_rate: float = Field(0.1, gt=0, le=1)
    """Share of requests refused for security in 5 minutes above which alert_denial_spike fires."""
    max_tenant_mismatch_rate: float = Field(0.02, gt=0, le=1)
    """Share of requests refused for another tenant's data above which alert_tenant_mismatch_spike fires."""
    repeat_ms: int = Field(14_400_000, ge=1_000, le=7 * DAY_MS)
    """Time after which an alert that still fires is told again."""
    heartbeat_ms: int = Field(3_600_000, ge=1_000, le=7 * DAY_MS)
    """How often the heartbeat is told. Whoever receives alerts should miss it when it stays away."""
