"""What dispatch and control are told, from the tables of the configuration.

With `app` and `assembly` the composition root.
"""

from __future__ import annotations

from typing import Any

from fairlead.protocol.envelope import ChannelLimits
from fairlead.proxy.config import ProxyConfig
from fairlead.proxy.control.settings import ClientGrant, ControlSettings
from fairlead.proxy.dispatch.approvals import ApprovalSettings
from fairlead.proxy.dispatch.dispatcher import DispatchSettings
from fairlead.proxy.dispatch.replay import ReplayControls
from fairlead.proxy.dispatch.retry import RetryPolicy
from fairlead.proxy.dispatch.submit import SubmitLimits
from fairlead.proxy.dispatch.upkeep import Retention
from fairlead.proxy.guard.access import permits

HOUR_MS = 3_600_000


def dispatch_settings(config: ProxyConfig) -> DispatchSettings:
    dispatch, retry = config.dispatch, config.retry
    return DispatchSettings(
        dispatch.pending_max, dispatch.lease_ms, config.messaging.control_max_payload, dispatch.kill_switch,
        RetryPolicy(
            config.reliability.enable_retry, retry.max_attempts, retry.base_delay_ms, retry.max_delay_ms
        ),
        retry.budget_percent / 100,
        Retention(
            dispatch.retention_hours * HOUR_MS, dispatch.dead_letter_retention_hours * HOUR_MS,
            dispatch.audit_retention_hours * HOUR_MS,
        ),
    )  # fmt: skip


def submit_limits(config: ProxyConfig) -> SubmitLimits:
    dispatch = config.dispatch
    return SubmitLimits(
        dispatch.args_bytes_max, dispatch.batch_items_max, dispatch.deadline_default_ms, dispatch.deadline_max_ms,
        config.reliability.enable_idempotency, dispatch.schedule_max_ms, config.worker.callback_allowed_hosts,
        bool(config.worker.callback_secrets), permits, approval_settings(config),
    )  # fmt: skip


def approval_settings(config: ProxyConfig) -> ApprovalSettings:
    given = config.approvals
    return ApprovalSettings(
        given.timeout_s * 1000, given.needed, given.commands, given.replays, given.replay_items_max_unapproved
    )


def replay_controls(config: ProxyConfig) -> ReplayControls:
    given = config.reliability
    return ReplayControls(
        given.dlq_replay_worker_enabled, given.dlq_replay_interval_ms, given.dlq_replay_batch_size,
        given.dlq_replay_max_count, given.dlq_replay_min_age_ms, given.dlq_replay_min_retry_interval_ms,
        given.dlq_replay_require_transient, given.dlq_replay_automatic, given.dlq_replay_items_max,
        given.dlq_replay_stop_percent, given.dlq_replay_daily_limit, given.dlq_replay_monthly_limit,
    )  # fmt: skip


def control_settings(config: ProxyConfig, grants: dict[str, tuple[str, ...]]) -> ControlSettings:
    messaging = config.messaging
    return ControlSettings(
        messaging.control_sender_id, channel_limits(messaging), messaging.handshake_timeout_millis / 1000,
        messaging.heartbeat_interval_millis, messaging.node_timeout_millis / 1000, config.dispatch.lease_ms, grants,
        config.security.token_ttl_millis,
    )  # fmt: skip


def client_grants(config: ProxyConfig) -> dict[str, ClientGrant]:
    """Which applications may link, and on whose behalf."""
    return {
        each.id: ClientGrant(each.tenant, each.scopes, each.runs_open_max, each.links_max)
        for each in config.clients
    }


def facts(config: ProxyConfig) -> dict[str, Any]:
    """What /status says of the configuration. No secret is part of it."""
    return {
        "proxy_id": config.messaging.control_sender_id,
        "environment": config.environment,
        "store": "postgresql" if config.store.is_postgres else "sqlite",
    }


def channel_limits(messaging: Any) -> ChannelLimits:
    """The channel's bounds from the keys that both configurations share."""
    return ChannelLimits(
        payload_bytes_max=messaging.control_max_payload,
        ttl_ms_max=messaging.control_ttl_millis,
        skew_ms_max=messaging.control_max_skew_millis,
        inflight_max=messaging.control_max_inflight,
    )


def node_grants(config: ProxyConfig) -> dict[str, tuple[str, ...]]:
    """Which nodes may link, and the namespaces each may announce commands in."""
    grants: dict[str, tuple[str, ...]] = {}
    for backend in config.backends:
        grants[backend.node_id] = (*grants.get(backend.node_id, ()), *backend.namespaces)
    for node in config.nodes:
        grants[node.id] = (*grants.get(node.id, ()), *node.namespaces)
    return grants
