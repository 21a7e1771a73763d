"""The one table of reasons: why anything was refused, failed or ended.

Owns what follows from every reason code of Fairlead (`reason_codes` spells them), once. Logs, metrics, HTTP errors, the
command line and the documentation all read this table; none of them has a list of its own.

Invariants (tested): every code has exactly one row; a code keeps the spelling of the runbook that
names it; a code that comes from outside and is not in the table is treated as `UNKNOWN_REASON`,
which is never retried (unknown fails closed).
"""

from __future__ import annotations

from dataclasses import dataclass

from fairlead.protocol.reason_codes import Family as Family
from fairlead.protocol.reason_codes import Reason as Reason
from fairlead.protocol.reason_codes import ResponseClass as ResponseClass
from fairlead.protocol.reason_codes import Traits as Traits

_R, _B, _U = ResponseClass.RETRYABLE, ResponseClass.BLOCKED, ResponseClass.UNKNOWN
_F = Family


def _row(family: Family, response: ResponseClass, status: int, title: str, action: str) -> Traits:
    return Traits(family, response, status, title, action)


# fmt: off
TRAITS: dict[Reason, Traits] = {
    # -- handshake
    Reason.HANDSHAKE_MALFORMED: _row(
        _F.HANDSHAKE, _B, 400, "the first bytes are not a Fairlead preamble",
        "On a proxy: something else dialled the control port; look at the address. On a node: what answers there is no control port; compare `proxies` with [messaging] port."),
    Reason.HANDSHAKE_KEY_UNKNOWN: _row(
        _F.HANDSHAKE, _B, 401, "the peer holds a key that is neither current nor previous",
        "`fairlead secret fingerprint --file FILE` must print the same on both sides (with --id ID it prints the key id of this line). Give the node the current secret."),
    Reason.HANDSHAKE_AUTH_FAILED: _row(
        _F.HANDSHAKE, _B, 401, "the handshake did not authenticate",
        "The peer claims a key id it does not hold, or bytes were changed in between. Treat as an attack."),
    Reason.HANDSHAKE_TIMEOUT: _row(
        _F.HANDSHAKE, _R, 408, "the handshake was not finished in time",
        "A slow or silent dialler, or a replayed first message. Harmless alone; watch the address if it recurs."),
    Reason.HANDSHAKE_LIMIT: _row(
        _F.HANDSHAKE, _R, 503, "too many handshakes at once",
        "Nodes retry by themselves. If it lasts, look for a flood, or raise rate_limits.handshake_concurrent_max."),
    Reason.HANDSHAKE_ADDRESS_LIMIT: _row(
        _F.HANDSHAKE, _R, 429, "too many handshakes at once from one address",
        "Look at the address. Many nodes behind one NAT need a larger handshake_concurrent_per_address_max."),
    Reason.HANDSHAKE_CLOSED: _row(
        _F.HANDSHAKE, _R, 400, "the peer closed before the handshake was finished",
        "On a node: the proxy refused, and its log names the reason: most often a wrong secret, an id that is not listed, or a revoked key. On a proxy: often a port scan."),
    Reason.PROXY_UNREACHABLE: _row(
        _F.HANDSHAKE, _R, 503, "the proxy does not accept connections at that address",
        "Is the proxy running? Compare `proxies` on the node with [messaging] host and port. It is dialled again by itself."),
    Reason.HANDSHAKE_REPLAYED: _row(
        _F.HANDSHAKE, _B, 409, "the first handshake message was seen before",
        "Somebody replays recorded bytes. No link came of it; look at the address."),
    Reason.IDENTITY_NOT_LISTED: _row(
        _F.HANDSHAKE, _B, 403, "the identity is not listed in the proxy's configuration",
        "Add it under [[backends]], [[nodes]] or [[clients]], or correct the id that dialled."),
    Reason.IDENTITY_REVOKED: _row(
        _F.HANDSHAKE, _B, 403, "the identity's key was revoked",
        "If it is yours, issue a new key (`fairlead secret node-key ID --epoch N`, N as the revoke answered) and configure the node with it."),
    Reason.PREVIOUS_KEY_EXPIRED: _row(
        _F.HANDSHAKE, _B, 401, "the peer still uses the previous secret, whose overlap has ended",
        "Give the node the current secret; the overlap ended at proxy_secret_previous_expires_at."),
    Reason.ROLE_NOT_SERVED: _row(
        _F.HANDSHAKE, _B, 403, "this listener does not serve that role",
        "A node, client or edge process dialled the wrong port, or the role is not enabled here."),
    Reason.INCARNATION_CONFLICT: _row(
        _F.HANDSHAKE, _B, 409, "another live process already runs under this node id",
        "Two processes share one server_id. Stop one, or give it its own id."),
    Reason.CLIENT_LINK_LIMIT: _row(
        _F.HANDSHAKE, _R, 429, "the application has as many links as it may",
        "Stop processes that share the id, or raise links_max of its [[clients]] table."),
    # -- control
    Reason.DECRYPT_FAILED: _row(
        _F.CONTROL, _B, 400, "a frame did not authenticate; the link was ended",
        "Bytes were changed on the way or a frame was replayed. The node reconnects; if it recurs, distrust the path."),
    Reason.LINK_TRUNCATED: _row(
        _F.CONTROL, _R, 400, "the connection ended without an authenticated close",
        "A process died or the network broke. The node reconnects by itself."),
    Reason.LINK_CLOSED: _row(
        _F.CONTROL, _R, 503, "the peer closed the link as intended", "Nothing to do: a planned stop."),
    Reason.LINK_ENDED_BY_PEER: _row(
        _F.CONTROL, _R, 503, "the peer ended the link and says why",
        "Read its reason in the detail, and the peer's own log."),
    Reason.LINK_IDLE_TIMEOUT: _row(
        _F.CONTROL, _R, 408, "nothing was heard on the link in time",
        "The peer hangs or the network drops packets. The node reconnects by itself."),
    Reason.LINK_WRITE_TIMEOUT: _row(
        _F.CONTROL, _R, 408, "the peer did not take our bytes in time",
        "A stuck peer. The link was ended so that it holds up nobody else."),
    Reason.LINK_DISPLACED: _row(
        _F.CONTROL, _R, 409, "a newer link of the same node took over",
        "Nothing to do: the node reconnected before the old connection was noticed dead."),
    Reason.LINK_MISBEHAVED: _row(
        _F.CONTROL, _B, 400, "the peer sent too many refused messages",
        "Read the reasons counted before it; most often versions differ or a clock is wrong."),
    Reason.PACKET_TOO_LARGE: _row(
        _F.CONTROL, _B, 413, "an envelope is larger than control_max_packet",
        "A broken or hostile peer; a well-behaved one splits what is large."),
    Reason.INGRESS_BACKPRESSURE: _row(
        _F.CONTROL, _R, 429, "the peer sent more than the credit it was given",
        "Look at the node's capacity and queue in /status; the work is delivered again."),
    Reason.VERSION_MISMATCH: _row(
        _F.CONTROL, _B, 505, "no common protocol version",
        "Stop the rollout. Align the versions of proxy and node; resume when the counter stays at zero."),
    Reason.MALFORMED_ENVELOPE: _row(
        _F.CONTROL, _B, 400, "the envelope cannot be decoded", "A broken peer. Look at its version and log."),
    Reason.UNEXPECTED_SENDER: _row(
        _F.CONTROL, _B, 403, "the sender named is not the identity that the key proves",
        "Compare server_id, control_sender_id and control_expected_sender_id on both sides."),
    Reason.WRONG_AUDIENCE: _row(
        _F.CONTROL, _B, 403, "the message is meant for somebody else",
        "A relay or a misconfigured control_sender_id. Look at both ends' ids."),
    Reason.INVALID_TIMESTAMP: _row(
        _F.CONTROL, _R, 400, "issued too long ago or too far in the future",
        "Look at the node's skew in /status and mend its clock (NTP)."),
    Reason.PAYLOAD_TOO_LARGE: _row(
        _F.CONTROL, _B, 413, "the payload is larger than control_max_payload",
        "Send less, or raise control_max_payload on both sides."),
    Reason.REPLAYED_ENVELOPE: _row(
        _F.CONTROL, _B, 409, "the message was seen before on this link",
        "A broken or hostile peer; it was not acted upon."),
    Reason.REPLAYED_REQUEST: _row(
        _F.CONTROL, _B, 409, "the registry request was seen before on this link",
        "A broken or hostile node; it was not acted upon."),
    Reason.REPLAYED_SNAPSHOT: _row(
        _F.CONTROL, _B, 409, "the registry message was seen before on this link",
        "A broken or hostile proxy; the node keeps its registry."),
    Reason.UNSUPPORTED_TYPE: _row(
        _F.CONTROL, _B, 400, "the message type is not known here",
        "A newer peer. It must not send what the agreed version does not have."),
    Reason.UNAUTHORIZED_TYPE: _row(
        _F.CONTROL, _B, 403, "this role may not send that message type",
        "A broken or hostile peer; it was not acted upon."),
    Reason.MALFORMED_PAYLOAD: _row(
        _F.CONTROL, _B, 400, "the body does not have the shape of its type",
        "A broken peer. Look at its version and log."),
    Reason.OUTBOUND_PAYLOAD_TOO_LARGE: _row(
        _F.CONTROL, _B, 413, "we were asked to send more than control_max_payload",
        "Send less, or raise control_max_payload on both sides."),
    Reason.FOREIGN_STATEMENT: _row(
        _F.CONTROL, _B, 403, "a statement about a run or node that is not the sender's",
        "A broken or hostile node; it was not acted upon."),
    # -- registry
    Reason.REGISTRY_NOT_SYNCHRONIZED: _row(
        _F.REGISTRY, _R, 503, "the node's registry is not synchronized",
        "It requests a snapshot by itself; force one with POST /api/nodes/ID/resync."),
    Reason.REGISTRY_STALE_GENERATION: _row(
        _F.REGISTRY, _B, 409, "an older registry than the one held",
        "A restored or outdated proxy speaks. After a restore, raise the epoch; never lower a generation."),
    Reason.REGISTRY_WRONG_FLEET: _row(
        _F.REGISTRY, _B, 409, "the registry of another fleet",
        "The node dialled another fleet's proxy. Correct `proxies`; if the move is meant, start the node once with --forget-registry."),
    Reason.REGISTRY_DIGEST_MISMATCH: _row(
        _F.REGISTRY, _R, 409, "the digest after applying differs from the one announced",
        "The node keeps its last good registry and asks for a snapshot."),
    Reason.REGISTRY_GAP: _row(
        _F.REGISTRY, _R, 409, "a delta that does not start where the node stands",
        "The node asks for a snapshot by itself."),
    Reason.REGISTRY_CHUNK_INVALID: _row(
        _F.REGISTRY, _R, 400, "snapshot chunks out of order or incomplete",
        "The node keeps its last good registry and asks again."),
    Reason.REGISTRY_TOO_LARGE: _row(
        _F.REGISTRY, _B, 413, "more commands or bytes than the registry may hold",
        "Remove commands, or raise the limit in protocol/limits.py on both sides."),
    Reason.NAMESPACE_NOT_GRANTED: _row(
        _F.REGISTRY, _B, 403, "the node announced a command in a namespace it was not granted",
        "Grant it in the proxy's configuration (namespaces), or rename the command."),
    Reason.DESCRIPTOR_INVALID: _row(
        _F.REGISTRY, _B, 422, "the descriptor breaks a rule",
        "Read the detail: a name, flag or schema is malformed."),
    Reason.DESCRIPTOR_CONFLICT: _row(
        _F.REGISTRY, _B, 409, "a differing descriptor stands under the same version",
        "Raise the command's version on the node, or remove the standing one (`fairlead ctl commands remove`)."),
    Reason.DESCRIPTOR_STALE: _row(
        _F.REGISTRY, _B, 409, "a newer version of the command stands",
        "Upgrade the node, or remove the newer version on purpose."),
    # -- dispatch
    Reason.BODY_MALFORMED: _row(
        _F.DISPATCH, _B, 400, "the body is not what this endpoint takes", "Read the detail and correct the request."),
    Reason.BODY_TOO_LARGE: _row(
        _F.DISPATCH, _B, 413, "the body is larger than allowed", "Send less, or split it."),
    Reason.BATCH_TOO_LARGE: _row(
        _F.DISPATCH, _B, 400, "more items than a batch may have", "Split the batch: 1,000 items at most."),
    Reason.COMMAND_UNKNOWN: _row(
        _F.DISPATCH, _B, 404, "no such command in the registry",
        "List them: `fairlead ctl commands`. A node announces its commands when it connects."),
    Reason.ARGUMENTS_INVALID: _row(
        _F.DISPATCH, _B, 422, "the arguments do not fit the command's schema", "Read the detail: every problem is listed."),
    Reason.TARGET_UNKNOWN: _row(
        _F.DISPATCH, _B, 404, "no such node, or no node offers the command", "List nodes: `fairlead ctl nodes`."),
    Reason.TARGET_INVALID: _row(
        _F.DISPATCH, _B, 422, "the target is not a node id, `any`, `all`, labels or `session:<id>`, or not one for this command", "Correct the target."),
    Reason.DEADLINE_INVALID: _row(
        _F.DISPATCH, _B, 422, "the deadline is outside its range", "Use a deadline_ms within the range named in the detail."),
    Reason.IDEMPOTENCY_KEY_INVALID: _row(
        _F.DISPATCH, _B, 400, "the idempotency key is malformed or given twice",
        "Use 1 to 200 visible characters, in the header or in the body."),
    Reason.IDEMPOTENCY_KEY_REUSED: _row(
        _F.DISPATCH, _B, 422, "the idempotency key was used for a different request",
        "Use a new key for a new request; the detail names the run that holds it."),
    Reason.QUEUE_FULL: _row(
        _F.DISPATCH, _R, 429, "the outbox is full",
        "Retry after the time given. If it lasts, look at nodes' queues and credit in /status."),
    Reason.DISPATCH_KILL_SWITCH: _row(
        _F.DISPATCH, _R, 503, "the kill switch is on", "An operator stopped dispatch; ask before turning it off."),
    Reason.DISPATCH_DRAINING: _row(
        _F.DISPATCH, _R, 503, "this proxy is draining", "Retry after the time given; another proxy or a restart will take it."),
    Reason.DISPATCH_DISABLED: _row(
        _F.DISPATCH, _R, 503, "dispatch is disabled for everybody",
        "Somebody set dispatch.rollout_mode to disabled; set it to canary (or off) when the cause is gone."),
    Reason.STORE_UNAVAILABLE: _row(
        _F.DISPATCH, _R, 503, "the store did not confirm the write",
        "Nothing was accepted. Look at /health/test and the disk; retry with the same idempotency key."),
    Reason.RUN_UNKNOWN: _row(_F.DISPATCH, _B, 404, "no such run", "Check the id; old runs are pruned after their retention."),
    Reason.RUN_ID_TAKEN: _row(
        _F.DISPATCH, _B, 409, "the run id that the submitter chose belongs to another run",
        "Use the client library, which never chooses one twice; else make ids as UUID version 7 from good randomness."),
    Reason.SESSION_UNKNOWN: _row(
        _F.DISPATCH, _B, 404, "no client with this session is connected to this proxy",
        "List them: `fairlead ctl sessions`. A session ends with its connection; with several proxies, ask the one it is on."),
    Reason.PLAYER_ONLY: _row(
        _F.DISPATCH, _B, 403, "only players may call this command, from the node that they are on",
        "Let the player enter it, or announce the command without player_only."),
    Reason.PLAYER_NOT_ON_NODE: _row(
        _F.DISPATCH, _B, 403, "a node asked on behalf of a player who is not on that node",
        "Usually the player left a moment ago. If it recurs, look at that node: it speaks for players it does not have."),
    Reason.PLAYER_RATE_LIMITED: _row(
        _F.DISPATCH, _R, 429, "the player entered more commands than [players] allows",
        "Wait, or raise players.commands_max."),
    Reason.CONTROL_PLANE_UNAVAILABLE: _row(
        _F.DISPATCH, _B, 409, "the proxy has no control channel, so it can ask no node for anything",
        "Set messaging.enabled = true."),
    Reason.PLAYER_NOT_READY: _row(
        _F.DISPATCH, _R, 409, "no node serves the client at this moment, or it is being transferred already",
        "Try again once its state is PLAYING: `fairlead ctl sessions`."),
    Reason.BACKEND_NOT_FOUND: _row(
        _F.DISPATCH, _B, 404, "the client's listener has no backend of this id", "Use the id of a [[backends]] table."),
    Reason.ALREADY_CONNECTED: _row(
        _F.DISPATCH, _B, 409, "the client is on that backend already", "Nothing to do."),
    Reason.BACKEND_UNAVAILABLE: _row(
        _F.DISPATCH, _R, 503, "the backend's node is offline, or takes nobody new",
        "Look at `fairlead ctl nodes`; start it, or end its drain."),
    Reason.BACKEND_STATUS_UNKNOWN: _row(
        _F.DISPATCH, _R, 503, "the backend's node has not been heard of since the proxy started",
        "Start the node, or correct the backend's node."),
    Reason.BACKEND_VERSION_MISMATCH: _row(
        _F.DISPATCH, _B, 409, "the backend's node serves another version of the game than the client speaks",
        "Transfer to a node of the client's version (label game_protocol)."),
    Reason.TRANSFER_UNSUPPORTED: _row(
        _F.DISPATCH, _B, 409, "a client of this kind, or this node, cannot be transferred", "Read the detail."),
    Reason.TRANSFER_LIMIT: _row(
        _F.DISPATCH, _R, 503, "as many transfers are under way as may be", "Wait, or raise transfer.pending_max."),
    Reason.REQUEST_SEND_FAILED: _row(
        _F.RUN, _R, 503, "the node that has the player could not be asked to refer it",
        "Look at that node's link: `fairlead ctl nodes`."),
    Reason.REFERRAL_REJECTED: _row(
        _F.RUN, _B, 502, "the node that has the player did not refer it; the player stays where it is",
        "Read the detail and that node's log: it is its handler's or its game server's answer."),
    Reason.TRANSFER_TIMEOUT: _row(
        _F.RUN, _R, 504, "the transferred client did not come back in time; a session that is still there plays on",
        "Look at the client; see that transfer.host and transfer.host_suffix lead back to this proxy."),
    Reason.CALLBACK_URL_REFUSED: _row(
        _F.DISPATCH, _B, 422, "the callback_url may not be called",
        "Use an http or https URL of a public host, without credentials. What must lie inside is named in worker.callback_allowed_hosts."),
    Reason.RUN_ALREADY_ENDED: _row(
        _F.DISPATCH, _B, 409, "the run has ended, and an end never changes", "Nothing to do: read how it ended with GET /api/runs/ID."),
    Reason.RUN_NOT_OWNED: _row(
        _F.DISPATCH, _B, 403, "the run was submitted by somebody else", "Ask its owner (submitted_by in GET /api/runs/ID), or replay its dead letter as an operator."),
    Reason.RUN_NOT_FAILED: _row(
        _F.DISPATCH, _B, 409, "only a FAILED run can be tried again", "Read its status; of a run with several targets, retry the children that failed."),
    Reason.SCHEDULE_INVALID: _row(
        _F.DISPATCH, _B, 422, "the time of the schedule is malformed or out of range", "Use delay_ms, or schedule_at as an RFC 3339 date-time, within dispatch.schedule_max_ms."),
    Reason.TENANT_DRAINING: _row(
        _F.DISPATCH, _R, 503, "nothing new is accepted of this tenant", "An operator drains it; see `fairlead ctl agents`. What was accepted goes on."),
    Reason.DLQ_RECORD_UNKNOWN: _row(
        _F.DISPATCH, _B, 404, "no such dead letter", "List them: `fairlead ctl dlq`."),
    Reason.DLQ_NOT_QUEUED: _row(
        _F.DISPATCH, _B, 409, "the dead letter is being replayed, or was", "Look at its state and its last run; a record has one replay at a time."),
    Reason.DLQ_PLAN_CHANGED: _row(
        _F.DISPATCH, _B, 409, "what would be replayed is not what the plan showed", "Ask for a dry run again, read it, and quote its plan_hash."),
    Reason.DLQ_FORCE_FORBIDDEN: _row(
        _F.DISPATCH, _B, 403, "force is for the operator role", "Ask an operator; the guards it passes over are named in the dry run."),
    Reason.DLQ_REPLAY_EMPTY: _row(
        _F.DISPATCH, _B, 409, "no record that was named may be replayed now", "Read the verdicts of a dry run: each names the guard that stands in the way."),
    Reason.REPLAY_RATE_LIMITED: _row(
        _F.DISPATCH, _R, 429, "too many replays from this tenant and address", "Retry after the time given, or clear it: `fairlead ctl rate-limits clear replay:`."),
    Reason.DLQ_TOO_YOUNG: _row(
        _F.DISPATCH, _R, 409, "the record is younger than reliability.dlq_replay_min_age_ms", "Nothing to do: it is replayed once it is old enough."),
    Reason.DLQ_TOO_SOON: _row(
        _F.DISPATCH, _R, 409, "the last replay of the record was a moment ago", "Nothing to do: it is replayed after reliability.dlq_replay_min_retry_interval_ms."),
    Reason.DLQ_MAX_REPLAYS: _row(
        _F.DISPATCH, _B, 409, "the record was replayed as often as it may be", "Look at why it fails; an operator may force one more."),
    Reason.DLQ_NOT_TRANSIENT: _row(
        _F.DISPATCH, _B, 409, "it failed for a reason that trying again does not mend", "Mend the cause (its reason names it), then force the replay."),
    Reason.DLQ_BUDGET_DAILY: _row(
        _F.DISPATCH, _R, 429, "the tenant's replays of today are used up", "Wait for the next day (UTC), or raise it: `fairlead ctl budgets`."),
    Reason.DLQ_BUDGET_MONTHLY: _row(
        _F.DISPATCH, _R, 429, "the tenant's replays of this month are used up", "Wait for the next month (UTC), or raise it: `fairlead ctl budgets`."),
    Reason.DLQ_TENANT_PAUSED: _row(
        _F.DISPATCH, _R, 409, "the tenant is paused", "Resume it: `fairlead ctl agents resume`."),
    Reason.DLQ_NODE_PAUSED: _row(
        _F.DISPATCH, _R, 409, "the node it has to run on is paused, draining or away", "See nodes in /status: resume, undrain or start it."),
    Reason.DLQ_REPLAY_OFF: _row(
        _F.DISPATCH, _R, 409, "replay is turned off", "Turn the worker on (reliability.dlq_replay_worker_enabled) and the flag dlq.replay.enabled, and the kill switch off."),
    Reason.DLQ_REPLAY_STOPPED: _row(
        _F.DISPATCH, _B, 409, "the replay stopped before this record's turn: too many of those before it failed", "Look at the failures of the replay, mend the cause, and ask for a new one."),
    Reason.FLAG_UNKNOWN: _row(
        _F.DISPATCH, _B, 404, "no feature flag has this key", "List them: `fairlead ctl flags`. PUT /api/flags with an owner makes one."),
    Reason.ROLLOUT_UNKNOWN: _row(
        _F.DISPATCH, _B, 404, "no rollout has this id", "List them: `fairlead ctl rollouts list`."),
    Reason.ROLLOUT_CONFLICT: _row(
        _F.DISPATCH, _B, 409, "the rollout does not stand where this can be done, or another one of its kind is under way",
        "Look where it stands: `fairlead ctl rollouts show ID`. One that was rolled back never goes on: start another."),
    Reason.APPROVAL_UNKNOWN: _row(
        _F.DISPATCH, _B, 404, "no approval has this id", "`fairlead ctl approvals list` shows them. They go with their run once its retention is over."),
    Reason.APPROVAL_OWN: _row(
        _F.DISPATCH, _B, 403, "nobody approves what they asked for, or what executes on their behalf", "Ask somebody else who has the scope approve. You may take it back: `fairlead ctl approvals reject`."),
    Reason.APPROVAL_AGENT_FORBIDDEN: _row(
        _F.DISPATCH, _B, 403, "an agent does not approve", "A person, or a service that speaks for one, decides. Agents may ask, and take back what they asked for."),
    Reason.APPROVAL_ALREADY_VOTED: _row(
        _F.DISPATCH, _B, 409, "this principal has one vote, and it is cast", "Nothing to do; others decide the rest. What was asked for can be taken back by whoever asked."),
    Reason.APPROVAL_PLAN_CHANGED: _row(
        _F.DISPATCH, _B, 409, "what would execute is not what was shown", "Read it again (`fairlead ctl approvals show`) and quote its plan_hash; where the command or the dead letters changed, ask for it anew."),
    Reason.APPROVAL_REJECTED: _row(
        _F.DISPATCH, _B, 409, "somebody who was asked to approve it said no", "The approval says who, and why. If it is wanted after all, submit it again, changed accordingly."),
    Reason.HITL_TIMEOUT_FAIL_CLOSED: _row(
        _F.DISPATCH, _B, 409, "nobody approved it in time, so it does not execute", "Submit a new request, and tell whoever approves (`fairlead ctl approvals list`). It is not replayed. approvals.timeout_s is the time they have."),
    Reason.HITL_TERMINAL_STATE_IMMUTABLE: _row(
        _F.DISPATCH, _B, 409, "it is decided, and that does not change", "Read the decision (`fairlead ctl approvals show`). For another one, submit a new request."),
    Reason.CIRCUIT_OPEN: _row(
        _F.DISPATCH, _R, 503, "half of the node's last runs failed for passing reasons, so others are preferred for a moment", "Look at what its handlers wait for. It is tried again with one run by itself; what is meant for it still goes there."),
    Reason.LEASE_TAKEN_OVER: _row(
        _F.DISPATCH, _R, 503, "another proxy let the lease of a delivery run out, so this one took it over", "Look at the other proxy: it died, stopped or cannot reach the store."),
    # -- run
    Reason.HANDLER_FAILED: _row(
        _F.RUN, _B, 500, "the handler raised", "Read the detail, and the node's log under the run's id."),
    Reason.HANDLER_FAILED_TRANSIENT: _row(
        _F.RUN, _R, 503, "the handler failed and said that trying again may help", "It was retried as far as [retry] allows (see the timeline). Mend what it waits for, then submit again."),
    Reason.HANDLER_TIMEOUT: _row(
        _F.RUN, _R, 504, "the handler did not finish in its time",
        "Raise the command's timeout_s, or look at what it waits for. It had no lasting effect through its transaction."),
    Reason.HANDLER_KILLS_NODE: _row(
        _F.RUN, _B, 500, "the node's process died each time while the run executed, at last with nothing beside it",
        "Look at the handler and its arguments: it exits, runs out of memory or crashes an extension. It is not tried again."),
    Reason.HANDLER_MISSING: _row(
        _F.RUN, _R, 503, "the node has no handler for the command", "Deploy the handler to the node; see offers in /status."),
    Reason.OUTCOME_UNKNOWN: _row(
        _F.RUN, _U, 502, "the run began and nobody can know whether it took effect",
        "Look at the effect itself before submitting again; a `once` command is never re-run by itself."),
    Reason.DEADLINE_EXCEEDED: _row(
        _F.RUN, _R, 504, "the deadline passed", "See in the timeline whether it waited for a node; submit again if it is still wanted."),
    Reason.DESCRIPTOR_MISMATCH: _row(
        _F.RUN, _R, 409, "the node holds another version of the command",
        "Retried by itself once the node is synchronized; see its generation in /status."),
    Reason.RESULT_TOO_LARGE: _row(
        _F.RUN, _B, 500, "the handler returned more than a result may hold",
        "Return less: a reference instead of the data. The effect, if any, has happened."),
    Reason.RESULT_INVALID: _row(
        _F.RUN, _B, 500, "the handler returned what JSON cannot carry",
        "Return None, booleans, numbers, text, lists and dicts with text keys."),
    Reason.FENCE_STALE: _row(
        _F.RUN, _B, 409, "an attempt that a newer one has replaced", "Nothing to do: the newer attempt counts."),
    Reason.BRIDGE_PAUSED: _row(
        _F.RUN, _R, 503, "the node's command bridge is paused", "Resume it with POST /api/nodes/ID/resume."),
    Reason.NODE_DRAINING: _row(
        _F.RUN, _R, 503, "the node is draining", "The run goes to another node, or waits for this one."),
    Reason.CHILD_FAILED: _row(
        _F.RUN, _B, 502, "not every target completed", "Read the per-node results of the run."),
    Reason.RUN_CANCELLED: _row(
        _F.RUN, _B, 409, "the run was cancelled",
        "Nothing to do: somebody asked for it, and the audit names who. Submit it again if it is wanted after all."),
    Reason.CALLBACK_ADDRESS_REFUSED: _row(
        _F.RUN, _B, 403, "the callback's host resolves to an address that may not be called",
        "If the receiver is yours, name its host in worker.callback_allowed_hosts and replay (`fairlead callbacks replay`); else distrust who submitted it."),
    Reason.CALLBACK_NOT_DELIVERED: _row(
        _F.RUN, _R, 503, "the callback's receiver did not take it",
        "It is tried again by itself, ten times within 76 hours. Read the detail, and look at the receiver."),
    Reason.CALLBACK_DEAD: _row(
        _F.RUN, _B, 502, "the callback was given up",
        "Mend the receiver, then replay: `fairlead callbacks replay`, or POST /callbacks/replay."),
    # -- edge
    Reason.HTTP_HEAD_MALFORMED: _row(
        _F.EDGE, _B, 400, "the request head is malformed", "A broken or hostile client."),
    Reason.HTTP_HEAD_TOO_LARGE: _row(
        _F.EDGE, _B, 431, "the request head is larger than allowed", "Send fewer or shorter headers (often cookies)."),
    Reason.HTTP_TARGET_TOO_LONG: _row(
        _F.EDGE, _B, 414, "the request target is longer than allowed", "Use a shorter URL, or raise limits.head_bytes_max."),
    Reason.HTTP_LOOP: _row(
        _F.EDGE, _B, 508, "the request went through Fairlead too often already",
        "A backend leads back to a proxy in front of it: correct the backends' addresses."),
    Reason.HTTP_UPGRADE_INVALID: _row(
        _F.EDGE, _B, 400, "the WebSocket handshake is malformed", "A broken or hostile client. It was not forwarded."),
    Reason.HTTP_UPGRADE_VERSION_UNSUPPORTED: _row(
        _F.EDGE, _B, 426, "a version of WebSocket other than 13", "Use a client of RFC 6455."),
    Reason.HTTP_MISDIRECTED: _row(
        _F.EDGE, _B, 421, "the request is meant for another server, port or scheme", "Let the client use the URL of this listener."),
    Reason.BACKEND_BUSY: _row(
        _F.EDGE, _R, 503, "no connection to the backend became free in time",
        "The backend answers too slowly for its load; limits.upstream_connections_max and upstream_queue_* bound it."),
    Reason.HTTP_HEAD_TIMEOUT: _row(
        _F.EDGE, _R, 408, "the request head did not arrive in time", "A slow or silent client."),
    Reason.HTTP_FRAMING_AMBIGUOUS: _row(
        _F.EDGE, _B, 400, "two readers could disagree about where the body ends",
        "A request-smuggling attempt or a broken client. It was not forwarded."),
    Reason.HTTP_VERSION_UNSUPPORTED: _row(
        _F.EDGE, _B, 505, "only HTTP/1.0 and HTTP/1.1 are served here", "Use HTTP/1.1."),
    Reason.HTTP_METHOD_UNSUPPORTED: _row(
        _F.EDGE, _B, 501, "the method is not served here", "CONNECT and TRACE are never forwarded."),
    Reason.HTTP_EXPECTATION_UNSUPPORTED: _row(
        _F.EDGE, _B, 417, "an expectation other than 100-continue", "Remove the Expect header."),
    Reason.HTTP_BODY_MALFORMED: _row(
        _F.EDGE, _B, 400, "the request body's framing is malformed", "A broken or hostile client."),
    Reason.HTTP_BODY_TOO_LARGE: _row(
        _F.EDGE, _B, 413, "the request body is larger than allowed", "Send less, or raise limits.http_body_bytes_max."),
    Reason.HTTP_BODY_TIMEOUT: _row(
        _F.EDGE, _R, 408, "the request body stopped arriving", "A slow or silent client."),
    Reason.CLIENT_GONE: _row(
        _F.EDGE, _R, 499, "the client went away before it was answered", "Nothing to do, unless there are many."),
    Reason.CLIENT_WRITE_TIMEOUT: _row(
        _F.EDGE, _R, 408, "the client did not take our bytes in time", "A stuck or hostile client; it was let go."),
    Reason.CONNECTION_LIMIT: _row(
        _F.EDGE, _R, 503, "too many connections at once", "Raise limits.connections_max (and RLIMIT_NOFILE), or add a proxy."),
    Reason.CONNECTION_RATE_LIMIT: _row(
        _F.EDGE, _R, 429, "too many new connections from one address",
        "Look at the address. Many clients behind one NAT need a larger rate_limits.connection_per_ip_max."),
    Reason.JOIN_RATE_LIMIT: _row(
        _F.EDGE, _R, 503, "too many new connections from everybody together",
        "A flood, or a fleet that comes back: see rate_limits.joins_per_s, joins_burst and joins_grace_millis."),
    Reason.ADDRESS_DENIED: _row(
        _F.EDGE, _B, 403, "the address may not connect", "See [access] allow and deny."),
    Reason.CLIENT_HANDSHAKE_LIMIT: _row(
        _F.EDGE, _R, 503, "too many clients are in their handshakes",
        "A flood of half-open clients, or raise rate_limits.client_handshake_concurrent_max."),
    Reason.CLIENT_HANDSHAKE_RATE_LIMIT: _row(
        _F.EDGE, _R, 429, "too many handshakes from one address",
        "Look at the address. Many clients behind one NAT need a larger rate_limits.handshake_per_ip_max."),
    Reason.EDGE_WORKER_LOST: _row(
        _F.EDGE, _R, 503, "a process that served clients ended by itself",
        "Its connections broke; it is started again. See its last log lines, and the system's for a kill by the OOM killer."),
    Reason.EDGE_WORKERS_BUSY: _row(
        _F.EDGE, _R, 503, "no process takes another connection at this moment",
        "They start, or do not keep up: see /status, workers. More of them help: [edge] workers."),
    Reason.EDGE_MAIN_SILENT: _row(
        _F.EDGE, _R, 503, "the main process did not say in time whether this client may go on",
        "It is overloaded or stuck: see its CPU time and log. Until it answers, workers let nobody through on their own."),
    Reason.HANDOVER_FAILED: _row(
        _F.EDGE, _U, 500, "the process that took the listening sockets came to nothing",
        "See the new process's log; start the proxy again. Its clients were served to their end."),
    Reason.ROUTING_LIMIT: _row(
        _F.EDGE, _R, 503, "too many clients are being routed at once",
        "Backends answer slowly. See routing in /status; raise rate_limits.routing_concurrent_max if they can take it."),
    Reason.ROUTE_DENIED: _row(
        _F.EDGE, _B, 403, "a route of the configuration refuses such requests",
        "If it should be served, look at the route that the detail names: deny_status, and which routes stand before it."),
    Reason.HTTP_PATH_AMBIGUOUS: _row(
        _F.EDGE, _B, 400, "the path can be read in two ways that lead to different routes",
        "Usually somebody who looks for a way past a route. A client that means it spells its path plainly."),
    Reason.NODE_DRAINED: _row(
        _F.EDGE, _R, 503, "the client's node was drained and its deadline has passed",
        "Nothing to do: an operator drained the node. The client comes back to another one."),
    Reason.BACKEND_NONE_AVAILABLE: _row(
        _F.EDGE, _R, 503, "no backend is available", "Start a backend; see nodes in /status for why each is out."),
    Reason.BACKEND_UNREACHABLE: _row(
        _F.EDGE, _R, 502, "no backend could be reached", "Look at the backends' addresses and processes."),
    Reason.BACKEND_TIMEOUT: _row(
        _F.EDGE, _R, 504, "the backend did not answer in time", "Look at the backend's load; limits.upstream_response_timeout_s bounds it."),
    Reason.BACKEND_CLOSED_EARLY: _row(
        _F.EDGE, _R, 502, "the backend closed before its answer was complete", "Look at the backend's log: it died or reset."),
    Reason.BACKEND_RESPONSE_MALFORMED: _row(
        _F.EDGE, _B, 502, "the backend's answer is malformed", "Look at the backend: its answer was not forwarded."),
    Reason.RELAY_IDLE_TIMEOUT: _row(
        _F.EDGE, _R, 408, "nothing moved on the connection in time", "Nothing to do, or raise limits.tcp_idle_timeout_s."),
    Reason.TLS_HELLO_MALFORMED: _row(
        _F.EDGE, _B, 400, "the first bytes are no TLS hello that can be read", "A broken or hostile client."),
    Reason.TLS_HANDSHAKE_FAILED: _row(
        _F.EDGE, _B, 400, "the TLS handshake with the client failed",
        "The detail says why: plain HTTP, an old version, no certificate of its own. Nothing to do, unless there are many."),
    Reason.TLS_HANDSHAKE_TIMEOUT: _row(
        _F.EDGE, _R, 408, "the client did not finish its TLS handshake in time", "A slow or silent client."),
    Reason.TLS_CERTIFICATE_UNUSABLE: _row(
        _F.EDGE, _B, 500, "certificates could not be loaded; the last good ones are kept",
        "The detail names the file and what is wrong. Correct it: it is read again as soon as it changes."),
    Reason.BACKEND_TLS_FAILED: _row(
        _F.EDGE, _R, 502, "the TLS handshake with the backend failed",
        "See whether the backend speaks TLS on that port, and which versions."),
    Reason.BACKEND_CERTIFICATE_REFUSED: _row(
        _F.EDGE, _B, 502, "the backend's certificate is not the one that is trusted",
        "If it was renewed, change tls_fingerprint_sha256 or tls_ca_file of that backend. If not, treat it as an attack."),
    Reason.BACKEND_CERTIFICATE_CHANGED: _row(
        _F.EDGE, _B, 502, "the backend shows another certificate than it did first",
        "If it was renewed, `fairlead ctl pins accept BACKEND SHA256`. If not, treat it as an attack."),
    Reason.PROXY_HEADER_MALFORMED: _row(
        _F.EDGE, _B, 400, "the PROXY protocol header is malformed, or missing where one is expected",
        "Look at who forwards to this port: it must send PROXY protocol version 1 or 2."),
    Reason.PROXY_HEADER_UNTRUSTED: _row(
        _F.EDGE, _B, 403, "a PROXY protocol header from an address that may not send one",
        "A client that pretends to be another; or list who forwards to this port: proxy_protocol_from of the listener."),
    Reason.PROXY_TOKEN_REJECTED: _row(
        _F.SECURITY, _B, 401, "the connection does not prove that it comes from the proxy",
        "The detail begins with the cause. MISSING or MALFORMED: somebody else dialled the gate. Others: see docs/gate.md."),
    Reason.GAME_PACKET_MALFORMED: _row(
        _F.EDGE, _B, 400, "what came is not the Minecraft protocol",
        "A scanner, a broken client, or another protocol on a game port. The detail says which packet; nothing was forwarded."),
    Reason.GAME_OPENING_TIMEOUT: _row(
        _F.EDGE, _R, 408, "the client did not say in time what it wants", "A slow or silent client; minecraft.opening_timeout_s bounds it."),
    Reason.GAME_VERSION_UNSUPPORTED: _row(
        _F.EDGE, _B, 400, "the client's version is not let in", "See minecraft.protocol_min and protocol_max."),
    Reason.GAME_ADDRESS_FORWARDED: _row(
        _F.EDGE, _B, 403, "the client says on its own behalf who it is, as only a proxy may",
        "An attempt to be somebody else on a server that believes BungeeCord; or set minecraft.forwarded = \"keep\"."),
    Reason.GAME_TOKEN_MALFORMED: _row(
        _F.EDGE, _B, 400, "the host name begins like a token and is none", "Made up, or cut on its way. The player joins by the usual name."),
    Reason.PLAYER_LIMIT: _row(
        _F.EDGE, _R, 503, "as many play as may", "Raise minecraft.players_max, or wait until somebody leaves."),
    Reason.PLAYER_THROWN_OUT: _row(
        _F.EDGE, _R, 503, "every node that the player could be led to has thrown it out lately",
        "Look at the nodes' logs for that player. minecraft.loop_max and loop_window_s bound it."),
    Reason.WAITING_ROOM_FULL: _row(
        _F.EDGE, _R, 503, "no node takes the player now, and too many wait already",
        "Start nodes; see minecraft.hold_max, and readmit_per_s for how fast a node that is back takes players."),
    Reason.WAITING_ROOM_TIMEOUT: _row(
        _F.EDGE, _R, 504, "no node became available while the player waited", "Start a node; see its row in /status for why it is out."),
    Reason.EDGE_DRAINING: _row(
        _F.EDGE, _R, 503, "the proxy lets nobody in any more: it is about to stop", "Nothing to do: another proxy, or the next one, takes the client."),
    # -- ops
    Reason.SECURITY_AUDIT_CHAIN_BROKEN: _row(
        _F.SECURITY, _B, 500, "the audit trail in the database does not follow from what was seen of it before",
        "Rows were changed, removed or put there, or the database was restored. Keep the audit file, find out with `fairlead ctl audit export` and `verify`; no checkpoint is signed until the next start."),
    Reason.AUDIT_FILE_UNWRITABLE: _row(
        _F.OPS, _R, 503, "the audit file cannot be written",
        "Make room on its disk, or let the proxy write there (audit.file). Nothing is lost: it catches up from the database."),
    Reason.OPS_RATE_LIMITED: _row(
        _F.OPS, _R, 429, "too many operators' calls from this caller and address",
        "Retry after the time given; RELIABILITY_OPS_RATE_MAX and _WINDOW_MS bound it. Clear it: `fairlead ctl rate-limits clear ops:`."),
    Reason.UNAUTHENTICATED: _row(
        _F.OPS, _B, 401, "nothing that says who calls", "Send x-ops-key, a key of reliability.ops_keys (for the demo: `. data/demo.env`) or one of `fairlead ctl keys create`; or a token as Authorization: Bearer."),
    Reason.ROUTE_UNKNOWN: _row(_F.OPS, _B, 404, "no such endpoint", "See /openapi.json."),
    Reason.PIN_NOT_WAITING: _row(
        _F.OPS, _B, 409, "no such certificate of that backend waits to be accepted",
        "`fairlead ctl pins list` shows which one does."),
    Reason.METHOD_NOT_ALLOWED: _row(_F.OPS, _B, 405, "the endpoint does not take that method", "See the Allow header."),
    Reason.QUERY_INVALID: _row(_F.OPS, _B, 400, "a query parameter is malformed", "Read the detail."),
    Reason.NODE_UNKNOWN: _row(_F.OPS, _B, 404, "no such node", "List nodes: `fairlead ctl nodes`."),
    Reason.NODE_NOT_CONNECTED: _row(_F.OPS, _R, 409, "the node has no link now", "Start the node. Drain and pause are kept for it; ask for a resync again."),
    Reason.CLIENT_UNKNOWN: _row(
        _F.OPS, _B, 404, "no such application", "See [[clients]] of the proxy's configuration; `id` may be a prefix there."),
    Reason.CONFIGURATION_REFUSED: _row(
        _F.OPS, _B, 422, "the configuration that was read again cannot be used",
        "The last good one stays in force. Mend what the detail names; `fairlead check config` lists it too."),
    Reason.INTERNAL_ERROR: _row(
        _F.OPS, _U, 500, "a defect in Fairlead", "Look at the log under the correlation id and report it."),
    Reason.CALLBACK_EVENT_INVALID: _row(
        _F.OPS, _B, 400, "the callback's body is not a signed result of that run",
        "Read the detail and correct the worker that sent it: eventId, runId, fence, nodeId and status are required."),
    Reason.CALLBACK_EVENT_CONFLICT: _row(
        _F.OPS, _B, 409, "the event id was used for a different callback",
        "An event id stands for one body. A broken worker, or two with one id; the first one counts."),
    Reason.CALLBACK_TOKEN_INVALID: _row(
        _F.OPS, _B, 401, "no valid token for the node's own endpoint",
        "Send `Authorization: Bearer TOKEN` with the node's worker.tasks_auth_token (TASKS_AUTH_TOKEN); while that is unset the endpoint is closed."),
    # -- security
    Reason.CALLBACK_SIGNATURE_INVALID: _row(
        _F.SECURITY, _B, 401, "the callback's signature does not fit",
        "Compare WORKER_CALLBACK_SIGNING_SECRET on both sides; rotate through callback_signing_secret_previous. Else treat as an attack."),
    Reason.CALLBACK_TIMESTAMP_INVALID: _row(
        _F.SECURITY, _B, 401, "the callback was signed too long ago or ahead of time",
        "Mend the sender's clock (NTP). A repeated one is a replay; WORKER_CALLBACK_SIGNATURE_TOLERANCE_SEC bounds it."),
    Reason.CREDENTIALS_AMBIGUOUS: _row(
        _F.SECURITY, _B, 401, "the request names its caller twice",
        "Send one x-ops-key, or one Authorization: Bearer, and not both; look for a proxy in between that adds one."),
    Reason.OPERATOR_KEY_EXPIRED: _row(
        _F.SECURITY, _B, 401, "the operator key has expired",
        "Make another one: `fairlead ctl keys create` with an admin's key."),
    Reason.OPERATOR_KEY_REVOKED: _row(
        _F.SECURITY, _B, 401, "the operator key was revoked",
        "Who still uses it? The audit trail says who revoked it. Make another one with `fairlead ctl keys create`."),
    Reason.OPERATOR_KEYS_UNAVAILABLE: _row(
        _F.OPS, _R, 503, "who was revoked meanwhile is not known, so no stored operator key counts",
        "Restore the store. A key of reliability.ops_keys works meanwhile."),
    Reason.OPERATOR_KEY_UNKNOWN: _row(
        _F.OPS, _B, 404, "no operator key has this id",
        "`fairlead ctl keys list` shows their ids. Keys of the configuration have none: take them out there."),
    Reason.OPERATOR_KEY_LIMIT: _row(
        _F.OPS, _B, 409, "there are as many operator keys as this proxy holds",
        "Revoke what is not used (`fairlead ctl keys list` shows the last use); a revoked one goes 30 days later."),
    Reason.SECRET_IN_USE: _row(
        _F.OPS, _B, 409, "taking this secret away would strand whoever is named",
        "Give them the current one (`fairlead secret rotate status` names them), then finish. With --force they are cut off, and the audit trail says so."),
    Reason.JWT_MALFORMED: _row(
        _F.SECURITY, _B, 401, "the bearer token is no signed JWT",
        "Three parts in base64url without padding, header and claims as JSON objects, no `crit`. Encrypted tokens are not taken."),
    Reason.JWT_TOO_LARGE: _row(
        _F.SECURITY, _B, 401, "the bearer token is too large",
        "At most 8 KiB. Have the issuer leave out claims that nobody here reads."),
    Reason.JWT_DUPLICATE_NAMES: _row(
        _F.SECURITY, _B, 401, "the bearer token has a name twice in its header or claims",
        "Two readers could take it for different tokens. Treat as an attack, or mend the issuer."),
    Reason.JWT_TOO_DEEP: _row(
        _F.SECURITY, _B, 401, "the bearer token nests too deeply",
        "Treat as an attack, or have the issuer leave out such claims."),
    Reason.JWT_ALGORITHM_REFUSED: _row(
        _F.SECURITY, _B, 401, "the bearer token names an algorithm that is not configured",
        "HS256 with jwt.hs256_secret, and what jwt.algorithms lists with jwt.jwks_url; never `none`. Treat as an attack if your issuer did not make it."),
    Reason.JWT_KEY_UNKNOWN: _row(
        _F.SECURITY, _B, 401, "the bearer token is signed with a key that the issuer does not publish",
        "Was the issuer's key rotated? Compare the token's kid with what jwt.jwks_url answers; weak keys in it are not taken, the log says which."),
    Reason.JWT_SIGNATURE_INVALID: _row(
        _F.SECURITY, _B, 401, "the bearer token's signature does not fit",
        "Another secret or issuer signed it, or it was changed. Treat as an attack if it recurs."),
    Reason.JWT_EXPIRED: _row(
        _F.SECURITY, _B, 401, "the bearer token has expired",
        "Ask the issuer for another one; if it is new, compare the clocks (NTP)."),
    Reason.JWT_NOT_YET_VALID: _row(
        _F.SECURITY, _B, 401, "the bearer token is not valid yet",
        "Compare the clocks of issuer and proxy (NTP); jwt.leeway_s bounds the difference."),
    Reason.JWT_ISSUER_WRONG: _row(
        _F.SECURITY, _B, 401, "the bearer token is of another issuer",
        "It must be jwt.issuer, to the letter."),
    Reason.JWT_AUDIENCE_WRONG: _row(
        _F.SECURITY, _B, 401, "the bearer token is meant for somebody else",
        "Ask the issuer for a token with jwt.audience in aud."),
    Reason.JWT_CLAIM_MISSING: _row(
        _F.SECURITY, _B, 401, "the bearer token lacks a claim that is needed",
        "iss, aud, exp and sub are always needed; a role too, unless jwt.default_role is set."),
    Reason.JWT_CLAIM_INVALID: _row(
        _F.SECURITY, _B, 401, "a claim of the bearer token is not what it must be",
        "The detail names the claim. Compare [jwt] with what the issuer puts into its tokens."),
    Reason.JWKS_UNAVAILABLE: _row(
        _F.OPS, _R, 503, "the issuer's keys cannot be fetched, so no token of theirs is believed",
        "Look at the log for jwt.jwks_url: name, certificate, network. Operator keys work meanwhile."),
    Reason.SIGNATURE_MISSING: _row(
        _F.SECURITY, _B, 401, "the request is not signed",
        "Send x-signature; `fairlead sign` makes it with DISPATCH_HMAC_SECRET."),
    Reason.SIGNATURE_MALFORMED: _row(
        _F.SECURITY, _B, 401, "the request's signature cannot be read",
        "One header, x-signature or X-Transbot-Signature, as `fairlead sign` prints it. Given twice it has no meaning."),
    Reason.SIGNATURE_KEY_UNKNOWN: _row(
        _F.SECURITY, _B, 401, "the request is signed with a secret that is neither current nor previous",
        "Compare `fairlead secret fingerprint` on both sides; give the caller the current dispatch.hmac_secret."),
    Reason.SIGNATURE_INVALID: _row(
        _F.SECURITY, _B, 401, "the signature is not of this request",
        "Something changed what was signed (method, path, query, body), or it was forged. Sign exactly what is sent."),
    Reason.SIGNATURE_TIMESTAMP_INVALID: _row(
        _F.SECURITY, _B, 401, "the request was signed too long ago, or ahead of our time",
        "Mend the caller's clock (NTP); sign at the moment of sending. DISPATCH_MAX_SKEW_MS bounds it."),
    Reason.SCOPE_MISSING: _row(
        _F.SECURITY, _B, 403, "the caller does not have the scope that this takes",
        "Grant it (`scopes` of the application's [[clients]] table), or do not ask."),
    Reason.SECURITY_REPLAY_DETECTED: _row(
        _F.SECURITY, _B, 409, "a request with this nonce was taken before",
        "Sign anew for each request. If nobody sent it twice, somebody recorded it: find out where. Never replay a key blindly."),
    Reason.SECURITY_REPLAY_GUARD_UNAVAILABLE: _row(
        _F.SECURITY, _R, 503, "whether the request is a replay cannot be told, so it is refused",
        "Look at the store (`fairlead ctl health`); if DISPATCH_MAX_NONCES is reached, raise it. Never turn the guard off."),
    Reason.SECURITY_TENANT_MISMATCH: _row(
        _F.SECURITY, _B, 403, "the caller is bound to another tenant, or the act concerns all of them",
        "Act on the tenant of the key or token; what concerns the whole fleet needs a caller that is bound to none."),
    Reason.SECURITY_READ_TENANT_MISMATCH: _row(
        _F.SECURITY, _B, 403, "the caller may not read what belongs to another tenant",
        "Check the caller's tenant and read scope (self, tenant, any); if many are refused, what issues identities."),
    Reason.PERMISSION_DENIED: _row(
        _F.SECURITY, _B, 403, "the caller lacks the permission that the command asks for",
        "Grant the command's permission (`fairlead ctl commands`) as a scope of the caller, or do not ask."),
    Reason.SECURITY_MISSING_IDENTITY_ENVELOPE: _row(
        _F.SECURITY, _B, 401, "the delivery carries no identity", "Inject the identity envelope at the proxy, then submit again."),
    Reason.SECURITY_MISSING_INTERNAL_TRUST_CONTEXT: _row(
        _F.SECURITY, _B, 401, "the delivery carries no trust token",
        "The proxy adds the signed token itself: bring it to the node's version. If it is, treat as an attack."),
    Reason.SECURITY_TRUST_TOKEN_INVALID: _row(
        _F.SECURITY, _B, 401, "the delivery's trust token is not of this delivery, or not of this fleet",
        "Is security.internal_trust_shared_secret set on both sides, and the same (`fairlead secret fingerprint`)? If so, treat as an attack."),
    Reason.SECURITY_TRUST_TOKEN_EXPIRED: _row(
        _F.SECURITY, _B, 401, "the delivery's trust token is too old, or ahead of the node's time",
        "The run is delivered again with a new one. If it recurs, compare the clocks of proxy and node (NTP)."),
    Reason.TRANSFER_TOKEN_REJECTED: _row(
        _F.SECURITY, _B, 403, "a client came with a transfer token that is not good, or not any more",
        "Read the detail. A token is good once, for one player, for transfer.timeout_ms; somebody who sends others is guessing."),
    Reason.SECURITY_SEAL_INVALID: _row(
        _F.SECURITY, _B, 409, "what is stored is not what a proxy of this fleet wrote",
        "Somebody wrote to the database: find out who. After a deliberate restore or a lost secret: `fairlead seals check`, then `fairlead seals adopt`."),
    # -- from outside
    Reason.UNKNOWN_REASON: _row(
        _F.OPS, _B, 500, "a reason this version does not know", "A newer peer; read its text in the detail. Not retried."),
}
# fmt: on


def traits(reason: Reason) -> Traits:
    """The row of `reason`."""
    return TRAITS[reason]


def parse_reason(text: str) -> Reason:
    """The reason spelled `text`, or `UNKNOWN_REASON` (which is never retried)."""
    try:
        return Reason(text)
    except ValueError:
        return Reason.UNKNOWN_REASON


def of_family(family: Family) -> tuple[Reason, ...]:
    """All reasons of a family, in the table's order. Metrics pre-register these at zero."""
    return tuple(reason for reason, row in TRAITS.items() if row.family is family)


@dataclass(frozen=True, slots=True)
class Reject:
    """A refusal as a value: what decoders, guards and admission return instead of a result."""

    reason: Reason
    detail: str = ""

    @property
    def retryable(self) -> bool:
        return TRAITS[self.reason].response is ResponseClass.RETRYABLE


class Refused(Exception):
    """A refusal on its way up to the shell that answers, counts and logs it."""

    def __init__(
        self, reason: Reason, detail: str = "", retry_after_s: float | None = None, status: int = 0
    ) -> None:
        """`status`: what HTTP says in the place of the reason's own, where a configuration chose one."""
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.status = status
        self.reason = reason
        self.detail = detail
        self.retry_after_s = retry_after_s
