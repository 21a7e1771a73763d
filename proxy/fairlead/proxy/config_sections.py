"""The tables of `proxy.toml`: every key with its default, its range and its description.

Owns what each key accepts by itself; `config` owns which keys contradict each other. Invariants: every
number has both ends; a description stands once, here, and `configs/proxy.toml` repeats it word for word
(a test compares them).
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from fairlead.protocol.registry import NAME_PATTERN
from fairlead.protocol.trust import TTL_MS_DEFAULT
from fairlead.proxy.config_rollout import AlertKeys
from fairlead.runtime.addresses import canonical_host, read_url
from fairlead.runtime.config_model import (
    DAY_MS,
    ControlKeys,
    FileName,
    Host,
    Id,
    IdOrPrefix,
    Instant,
    Lax,
    Namespace,
    OpsKey,
    Secret,
    Section,
    Unfit,
    decoded,
    instant_ms,
)

SQLITE: Final = "sqlite:///"
POSTGRES: Final = ("postgresql://", "postgres://")
_TENANT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PUBLIC_HOST: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?")
APPROVED_COMMANDS_MAX: Final = 256
APPROVERS_MAX: Final = 10
_CLAIM: Final = re.compile(r"[\x21-\x7e]{0,128}")
_SUBJECT: Final = re.compile(r"[^\s\x00-\x1f\x7f]{1,128}")
_SCOPE: Final = re.compile(r"[a-z0-9][a-z0-9._:-]{0,61}(\.\*|[a-z0-9._:-]{0,2})")


def _check_store(url: str) -> str:
    if url.startswith(POSTGRES):
        if len(url.partition("://")[2].partition("?")[0].rstrip("/")) == 0:
            raise Unfit("names no database (allowed: postgresql://USER@HOST/NAME)", "correct it")
        return url
    path = url.removeprefix(SQLITE)
    if path == url or not path or path.startswith(":") or "?" in path:
        raise Unfit(
            "is not a store (allowed: sqlite:///FILE, a durable file, or postgresql://USER@HOST/NAME)",
            "correct it",
        )
    return url


def _check_tenant(text: str) -> str:
    if not _TENANT.fullmatch(text):
        raise Unfit("is not a tenant (allowed: 1 to 64 letters, digits, dots, dashes)", "correct it")
    return text


def _check_subject(text: str) -> str:
    if not _SUBJECT.fullmatch(text):
        raise Unfit("is not a subject (allowed: 1 to 128 printable characters without blanks)", "correct it")
    return text


def _check_scope(text: str) -> str:
    if not _SCOPE.fullmatch(text):
        raise Unfit("is not a scope (allowed: 1 to 64 of a-z 0-9 . _ : -)", "correct it")
    return text


def _check_allowed_host(text: str) -> str:
    if canonical_host(text) is None:
        raise Unfit("is not a host (allowed: a name, or an address in its usual form)", "correct it")
    return text


def _check_claim(text: str) -> str:
    if not _CLAIM.fullmatch(text):
        raise Unfit(
            "is not the name of a claim (allowed: 1 to 128 printable characters, or empty)", "correct it"
        )
    return text


def _check_commands(commands: dict[str, int]) -> dict[str, int]:
    if len(commands) > APPROVED_COMMANDS_MAX:
        raise Unfit(f"has more than {APPROVED_COMMANDS_MAX} commands", "remove some")
    for name, needed in commands.items():
        if not NAME_PATTERN.fullmatch(name):
            raise Unfit(f"has {name!r}, which is not a command (allowed: like ops:wipe)", "correct it")
        if not 1 <= needed <= APPROVERS_MAX:
            raise Unfit(f"asks {needed} to approve {name} (allowed: 1 to {APPROVERS_MAX})", "correct it")
    return commands


ApprovedCommands = Annotated[dict[str, int], AfterValidator(_check_commands)]


def _check_public_host(text: str) -> str:
    if text and (len(text) > 253 or not _PUBLIC_HOST.fullmatch(text)):
        raise Unfit("is no name or address (allowed: like play.example)", "correct it")
    return text


AllowedHost = Annotated[str, AfterValidator(_check_allowed_host)]
PublicHost = Annotated[str, AfterValidator(_check_public_host)]
Subject = Annotated[str, AfterValidator(_check_subject)]
ClaimName = Annotated[str, AfterValidator(_check_claim)]
Tenant = Annotated[str, AfterValidator(_check_tenant)]
Scope = Annotated[str, AfterValidator(_check_scope)]
StoreUrl = Annotated[str, AfterValidator(_check_store)]


class Security(Section):
    """[security]: the secret that everything else is derived from."""

    proxy_secret: Secret | None = None
    """The secret of the fleet: 64 hex digits, or base64 of 32 bytes. Best kept out of this file."""
    proxy_secret_file: FileName | None = None
    """A file (mode 600) with the secret, instead of proxy_secret."""
    proxy_secret_previous: Secret | None = None
    """The secret before the last rotation, still accepted until it expires."""
    proxy_secret_previous_file: FileName | None = None
    """A file (mode 600) with the previous secret, instead of proxy_secret_previous."""
    proxy_secret_previous_expires_at: Instant | None = None
    """When the previous secret ends, as an RFC 3339 date-time in quotes. Required with a previous secret."""
    internal_trust_shared_secret: Secret | None = None
    """A secret of its own for deliveries' trust tokens, the same on every node. Else derived from each node's key."""
    internal_trust_shared_secret_file: FileName | None = None
    """A file (mode 600) with that secret, instead of internal_trust_shared_secret."""
    internal_trust_shared_secret_previous: Secret | None = None
    """The trust secret before the last rotation, used for nodes that do not hold the current one yet."""
    internal_trust_shared_secret_previous_file: FileName | None = None
    """A file (mode 600) with the previous trust secret, instead of internal_trust_shared_secret_previous."""
    token_ttl_millis: int = Field(TTL_MS_DEFAULT, ge=1_000, le=3_600_000)
    """How long a trust token is believed after it was issued, the difference of clocks aside."""

    @property
    def secret(self) -> bytes:
        """The current secret's bytes."""
        current = decoded(self.proxy_secret)
        assert current is not None, "load refuses a configuration without a secret"
        return current

    @property
    def secret_previous(self) -> bytes | None:
        """The previous secret's bytes, if there is one."""
        return decoded(self.proxy_secret_previous)

    @property
    def trust_secrets(self) -> tuple[bytes, ...]:
        """The secrets for trust tokens, the current one first; none where they are derived."""
        given = (self.internal_trust_shared_secret, self.internal_trust_shared_secret_previous)
        return tuple(secret for secret in map(decoded, given) if secret is not None)

    @property
    def secret_previous_expires_at_ms(self) -> int | None:
        """When the previous secret ends, in milliseconds since the epoch."""
        at = self.proxy_secret_previous_expires_at
        return None if at is None else instant_ms(at)


class NodeGrant(Section):
    """[[nodes]]: nodes without a client endpoint."""

    id: IdOrPrefix = Field(examples=["worker-*"])
    """A node without a client endpoint: its id, or a prefix ending in *. A bare * is for development only."""
    namespaces: Annotated[tuple[Namespace, ...], Lax] = ()
    """Command namespaces that it may announce."""


class ClientGrant(Section):
    """[[clients]]: applications that submit commands over a client link."""

    id: IdOrPrefix = Field(examples=["shop"])
    """An application that may link: its id, or a prefix ending in *. A bare * is for development only."""
    tenant: Tenant = "default"
    """The tenant on whose behalf its runs execute."""
    scopes: Annotated[tuple[Scope, ...], Lax] = ("dispatch",)
    """What it may do. Without dispatch it may link, and submit nothing."""
    runs_open_max: int = Field(4_096, ge=1, le=65_536)
    """Runs of one link that may be without an end; beyond it, submissions are turned away."""
    links_max: int = Field(16, ge=1, le=1_024)
    """Links at once under one id: the processes of the application."""


class Messaging(ControlKeys):
    """[messaging]: the control port, for nodes and client links."""

    enabled: bool = True
    """Whether nodes and client links are served."""
    host: Host = "0.0.0.0"
    """Address of the control port. Open by default: every peer must prove its key."""
    port: int = Field(25_570, ge=0, le=65_535)
    """The control port. 0 (development only): a free one."""
    control_sender_id: Id = "proxy"
    """The proxy's own id in messages; the nodes' control_expected_sender_id."""
    control_replay_max_entries: int = Field(100_000, ge=1_000, le=10_000_000)
    """Messages remembered at once. Full means refused, never forgotten."""
    handshake_timeout_millis: int = Field(5_000, ge=100, le=60_000)
    """Time for a peer to finish its handshake."""
    heartbeat_interval_millis: int = Field(2_000, ge=100, le=60_000)
    """How often proxy and node say that they are there, and leases are renewed."""
    node_timeout_millis: int = Field(15_000, ge=300, le=600_000)
    """Silence after which a link is given up. At least 3 heartbeats."""


class Observability(Section):
    """[observability]: the ops port."""

    enabled: bool = True
    """Whether the ops port is served."""
    host: Host = "127.0.0.1"
    """Address of the ops port."""
    port: int = Field(9_100, ge=0, le=65_535)
    """The ops port. 0 (development only): a free one."""
    open_reads: bool = True
    """Whether health, metrics and status need no key when asked from loopback."""


class Dispatch(Section):
    """[dispatch]: commands, from submission to their end."""

    kill_switch: bool = False
    """Stops acceptance, delivery and retries at once. Any source that says true wins."""
    kill_switch_file: str = ""
    """What operators say of the kill switch, a line each; a file that is merely there is on. "": beside the store."""
    pending_max: int = Field(100_000, ge=1, le=100_000_000)
    """Runs that may wait; beyond it, submissions are answered 429."""
    args_bytes_max: int = Field(32_768, ge=64, le=16_777_216)
    """Longest arguments of one run, in bytes. At most messaging.control_max_payload - 4096."""
    body_bytes_max: int = Field(4_194_304, ge=1_024, le=67_108_864)
    """Longest body of a submission, batches included."""
    batch_items_max: int = Field(1_000, ge=1, le=1_000)
    """Submissions in one batch."""
    deadline_default_ms: int = Field(60_000, ge=100, le=30 * DAY_MS)
    """Deadline of a run that names none."""
    deadline_max_ms: int = Field(DAY_MS, ge=100, le=30 * DAY_MS)
    """Longest deadline a submission may name."""
    lease_ms: int = Field(15_000, ge=1_000, le=600_000)
    """How long a delivered run is a node's without being renewed. At least 2 heartbeats."""
    wait_max_s: int = Field(60, ge=0, le=3_600)
    """Longest `Prefer: wait`."""
    schedule_max_ms: int = Field(30 * DAY_MS, ge=0, le=366 * DAY_MS)
    """How far ahead a run may be scheduled. 0: not at all."""
    retention_hours: int = Field(168, ge=1, le=87_600)
    """How long finished runs, and the idempotency keys that stand for them, are kept."""
    dead_letter_retention_hours: int = Field(720, ge=1, le=87_600)
    """How long dead letters are kept once resolved; open ones are kept for ever. At least retention_hours."""
    audit_retention_hours: int = Field(2_160, ge=24, le=87_600)
    """How long audit records are kept."""
    public: bool = False
    """Whether clients' HTTP listeners serve /api/dispatch and /api/runs/ID too."""
    require_auth: bool = True
    """Whether a submission needs a caller who proves who they are. False only in development."""
    auth_mode: Literal["off", "observe", "enforce"] = "enforce"
    """What becomes of one without: refused, or only counted (observe), or nothing (off, development only)."""
    hmac_secret: Secret | None = None
    """The secret that callers sign requests with. Without it none is believed."""
    hmac_secret_file: FileName | None = None
    """A file (mode 600) with that secret, instead of hmac_secret."""
    hmac_secret_previous: Secret | None = None
    """The signing secret before the last rotation, still believed."""
    hmac_secret_previous_file: FileName | None = None
    """A file (mode 600) with the previous signing secret, instead of hmac_secret_previous."""
    hmac_scopes: Annotated[tuple[Scope, ...], Lax, Field(min_length=1)] = ("dispatch", "read", "replay")
    """What a signature alone allows: scopes, permissions of commands. It reads and replays only what was signed so."""
    integrity_mode: Literal["", "off", "observe", "enforce"] = ""
    """What becomes of a submission that is not signed well, as in auth_mode. "": enforce where there is a secret."""
    observe_until: Instant | None = None
    """When observe ends (RFC 3339), after which it is enforce. Needed for it in production."""
    rollout_mode: Literal["off", "canary", "disabled"] = "canary"
    """For whom these checks are enforced: nobody (off), a cohort (canary); disabled: nothing is accepted at all."""
    canary_percent: int = Field(100, ge=0, le=100)
    """How many per cent of all subjects the cohort has. Raising it never lets anybody out."""
    canary_allowlist: Annotated[tuple[Subject, ...], Lax] = ()
    """Subjects that are in the cohort in any case: principals, or address:ADDRESS for callers that prove nothing."""
    canary_denylist: Annotated[tuple[Subject, ...], Lax] = ()
    """Subjects that are never in it."""
    max_skew_ms: int = Field(300_000, ge=1_000, le=3_600_000)
    """How far the time of a signature may lie from ours, either way."""
    nonce_ttl_ms: int = Field(600_000, ge=2_000, le=DAY_MS)
    """How long the nonce of a signature is remembered. At least 2 x max_skew_ms, so that none outlives its memory."""
    max_nonces: int = Field(50_000, ge=100, le=10_000_000)
    """Nonces remembered at once. Full means refused, never forgotten: as many as come in nonce_ttl_ms, and more."""

    @property
    def hmac_secrets(self) -> tuple[bytes, ...]:
        """The signing secrets' bytes, the current one first; none where there is no current one."""
        found = (decoded(self.hmac_secret), decoded(self.hmac_secret_previous))
        return tuple(each for each in found if each is not None)

    @property
    def auth_mode_now(self) -> str:
        """The mode of authentication, whichever of its keys says so."""
        return self.auth_mode if self.require_auth else "off"

    @property
    def integrity_mode_now(self) -> str:
        """The mode of integrity, where the key leaves it to the secret."""
        return self.integrity_mode or ("enforce" if self.hmac_secret is not None else "off")

    @property
    def observe_until_ms(self) -> int | None:
        """When observe ends, in milliseconds since the epoch."""
        return None if self.observe_until is None else instant_ms(self.observe_until)


class Retry(Section):
    """[retry]: automatic attempts after one that failed for a passing reason."""

    max_attempts: int = Field(3, ge=1, le=20)
    """How many attempts a run has, the first included; a command may set its own."""
    base_delay_ms: int = Field(250, ge=1, le=60_000)
    """The first delay's ceiling; it doubles with every attempt. The delay is drawn below it (full jitter)."""
    max_delay_ms: int = Field(2_000, ge=1, le=300_000)
    """The highest ceiling of a delay."""
    budget_percent: int = Field(20, ge=0, le=1_000)
    """Retries as a share of first attempts: what is beyond fails at once. A burst of 20 is always allowed."""


class Reliability(AlertKeys):
    """[reliability]: who operates, and what callers may ask."""

    ops_require_operator_key: bool = True
    """Whether operators need a key. False only in development, on loopback."""
    ops_keys: Annotated[tuple[OpsKey, ...], Lax] = ()
    """The operators' keys, each of 32 or more characters. Best set by RELIABILITY_OPS_KEYS."""
    ops_require_non_public_auth: bool = False
    """Whether callers without credentials get nothing but health, from loopback and in development too."""
    ops_allow_demo_write: bool = False
    """Whether they may do more than look where no key is required (development only)."""
    enable_idempotency: bool = True
    """Whether callers may send idempotency keys. The nodes' inbox always holds."""
    enable_retry: bool = True
    """Whether attempts that failed for a passing reason are retried."""
    dlq_replay_worker_enabled: bool = False
    """Whether this proxy carries out the replays of dead letters that were asked for."""
    dlq_replay_interval_ms: int = Field(15_000, ge=100, le=3_600_000)
    """How often the replay worker looks; a request wakes it at once."""
    dlq_replay_batch_size: int = Field(5, ge=1, le=1_000)
    """Replays that one turn of the worker starts at most."""
    dlq_replay_max_count: int = Field(3, ge=1, le=1_000)
    """How often one dead letter may be replayed. Attempts count, not requests."""
    dlq_replay_min_age_ms: int = Field(15_000, ge=0, le=30 * DAY_MS)
    """How long a dead letter rests before it is replayed."""
    dlq_replay_min_retry_interval_ms: int = Field(10_000, ge=0, le=30 * DAY_MS)
    """How long it rests between two replays."""
    dlq_replay_require_transient: bool = True
    """Whether only what failed for a passing reason may be replayed without force."""
    dlq_replay_automatic: bool = False
    """Whether the worker also replays such dead letters that nobody asked for, within the same guards."""
    dlq_replay_items_max: int = Field(1_000, ge=1, le=10_000)
    """Dead letters that one request may replay."""
    dlq_replay_stop_percent: int = Field(20, ge=0, le=100)
    """Share of failures above which a replay of several stops by itself."""
    dlq_replay_daily_limit: int = Field(1_000, ge=0, le=1_000_000_000)
    """Replays a day (UTC) of a tenant that has no budget of its own."""
    dlq_replay_monthly_limit: int = Field(20_000, ge=0, le=1_000_000_000)
    """Replays a month (UTC) of a tenant that has no budget of its own."""
    dlq_replay_rate_max: int = Field(3, ge=1, le=1_000_000)
    """Replay requests from one tenant and address within the window; dry runs do not count."""
    dlq_replay_rate_window_ms: int = Field(300_000, ge=1_000, le=DAY_MS)
    """That window."""
    ops_rate_max: int = Field(120, ge=1, le=1_000_000)
    """Operators' calls from one caller and address within the window; submissions do not count."""
    ops_rate_window_ms: int = Field(60_000, ge=1_000, le=DAY_MS)
    """That window."""
    ops_audit_max_in_memory: int = Field(1_000, ge=1, le=100_000)
    """Audit events that are read into memory, and so answered, at once."""


class Approvals(Section):
    """[approvals]: what executes only once somebody else has said yes."""

    timeout_s: int = Field(3_600, ge=1, le=30 * 86_400)
    """Time to decide. What nobody decides in time does not execute (hitl_timeout_fail_closed)."""
    needed: int = Field(1, ge=1, le=10)
    """How many have to approve; whoever asked is none of them. One who rejects ends it."""
    commands: ApprovedCommands = Field(default_factory=dict)
    """Commands that need approval whatever their flags say, and by how many: {"ops:wipe" = 2}."""
    replays: bool = True
    """Whether forced replays, and those of many dead letters, need approval. False only in development."""
    replay_items_max_unapproved: int = Field(10, ge=0, le=10_000)
    """Dead letters that a replay without force may have without approval."""


class Audit(Section):
    """[audit]: the trail of who did what, beside the database."""

    file: str = Field("data/reliability-ops-audit.jsonl", max_length=4_096)
    """Where each audit event is also written, a line each, for an anchor outside of the database. "": nowhere."""
    checkpoint_every_rows: int = Field(500, ge=1, le=100_000)
    """Events after which a signed checkpoint is made."""
    checkpoint_every_s: int = Field(60, ge=1, le=86_400)
    """Time after which one is made where there is a new event."""


class Worker(Section):
    """[worker]: callbacks, out to whoever asked for them and in from workers without a link."""

    callback_signing_secret: Secret | None = None
    """The secret that callbacks are signed with, both ways. Without it none is sent and none is taken."""
    callback_signing_secret_file: FileName | None = None
    """A file (mode 600) with that secret, instead of callback_signing_secret."""
    callback_signing_secret_previous: Secret | None = None
    """The signing secret before the last rotation: still believed, and signed with beside the current one."""
    callback_signing_secret_previous_file: FileName | None = None
    """A file (mode 600) with the previous signing secret, instead of callback_signing_secret_previous."""
    callback_oidc_audience: str = Field("", max_length=512)
    """Audience of the ID token that a worker sends with a result, beside its signature. Empty: none is asked for."""
    callback_oidc_email: str = Field("", max_length=320)
    """The address that its email claim must have. Empty: any caller of jwt.issuer."""
    callback_signature_tolerance_sec: int = Field(300, ge=1, le=3_600)
    """How far the time of a signature may lie from ours, either way."""
    public_callbacks: bool = False
    """Whether clients' HTTP listeners serve /callbacks/runs/ID too."""
    callback_allowed_hosts: Annotated[tuple[AllowedHost, ...], Lax] = ()
    """Names and addresses that a callback_url may have although they are loopback or private."""
    callback_timeout_ms: int = Field(5_000, ge=100, le=30_000)
    """Time for a receiver to be found, reached and to answer."""
    callback_concurrent_max: int = Field(16, ge=1, le=1_024)
    """Callbacks being sent at once; at most 4 of them to one host."""

    @property
    def callback_secrets(self) -> tuple[bytes, ...]:
        """The signing secrets' bytes, the current one first; none where there is no current one."""
        found = (decoded(self.callback_signing_secret), decoded(self.callback_signing_secret_previous))
        return tuple(each for each in found if each is not None)


class Jwt(Section):
    """[jwt]: callers that come with a token (Authorization: Bearer)."""

    issuer: str = Field("", max_length=512)
    """Who issues the tokens, exactly as in their iss. Empty: no token is believed."""
    audience: str = Field("", max_length=512)
    """Whom tokens must be meant for: it must be, or be among, their aud."""
    hs256_secret: Secret | None = None
    """A secret shared with the issuer, for tokens signed with HS256."""
    hs256_secret_file: FileName | None = None
    """A file (mode 600) with that secret, instead of hs256_secret."""
    hs256_secret_previous: Secret | None = None
    """The shared secret before the last rotation, still believed."""
    hs256_secret_previous_file: FileName | None = None
    """A file (mode 600) with the previous shared secret, instead of hs256_secret_previous."""
    jwks_url: str = Field("", max_length=2_048)
    """Where the issuer publishes its keys (JWKS), over https. Empty: nowhere."""
    algorithms: Annotated[tuple[Literal["RS256", "ES256", "EdDSA"], ...], Lax] = ("RS256", "ES256", "EdDSA")
    """Which kinds of published keys are used."""
    leeway_s: int = Field(30, ge=0, le=300)
    """How far the clocks of issuer and proxy may differ."""
    jwks_refresh_s: int = Field(300, ge=10, le=86_400)
    """How often the published keys are fetched. A token with an unknown key causes a fetch too."""
    jwks_stale_max_s: int = Field(86_400, ge=60, le=30 * 86_400)
    """How long the last keys count where they cannot be fetched; then no such token is believed."""
    role_claim: ClaimName = "role"
    """The claim with the role: viewer, operator or admin. Empty: none is read."""
    default_role: Literal["", "viewer", "operator", "admin"] = ""
    """The role of a token without that claim. Empty: such a token is refused."""
    scope_claim: ClaimName = "scope"
    """The claim with the scopes, which narrow what the role allows. Empty: none is read."""
    tenant_claim: ClaimName = "tenant"
    """The claim with the tenant that the caller is bound to. Empty: none is read."""
    read_scope_claim: ClaimName = "read_scope"
    """The claim with whose runs the caller may look at: self, tenant or any. Without it: tenant, or any without one."""
    subject_type_claim: ClaimName = "subject_type"
    """The claim with what the caller is: human, service or agent. Without it: human with an e-mail, else service."""
    email_claim: ClaimName = "email"
    """The claim with the caller's e-mail, for the audit trail. Empty: none is read."""

    @property
    def hs256_secrets(self) -> tuple[bytes, ...]:
        """The shared secrets' bytes, the current one first; none where there is no current one."""
        found = (decoded(self.hs256_secret), decoded(self.hs256_secret_previous))
        return tuple(each for each in found if each is not None)

    @property
    def jwks_host(self) -> str:
        """The host of jwks_url."""
        destination = read_url(self.jwks_url)
        assert not isinstance(destination, str), "load refuses what is no URL"
        return destination.host


class Transfer(Section):
    """[transfer]: how clients are moved between backends."""

    host: PublicHost = ""
    """The name by which players reach this proxy, where they are sent back to. Needed to transfer players."""
    port: int = Field(0, ge=0, le=65_535)
    """Port of that name. 0: the port of the player's listener."""
    host_suffix: PublicHost = ""
    """A domain whose every name leads to this proxy (wildcard DNS): then a transfer's token is part of the name."""
    timeout_ms: int = Field(30_000, ge=1_000, le=600_000)
    """Time for a transferred client to reach its target; then the transfer has failed. Its token is good as long."""
    pending_max: int = Field(1_000, ge=1, le=100_000)
    """Transfers under way at once. More are refused."""


class Players(Section):
    """[players]: what players may do who enter commands on nodes."""

    scopes: Annotated[tuple[Scope, ...], Lax] = ("dispatch",)
    """What they may do: dispatch, and permissions that commands ask for. Empty: no player's command is taken."""
    tenant: Tenant = "default"
    """The tenant on whose behalf their runs execute."""
    commands_max: int = Field(20, ge=1, le=100_000)
    """Commands of one player within the window."""
    commands_window_ms: int = Field(10_000, ge=100, le=3_600_000)
    """That window."""


class Handover(Section):
    """[handover]: how the next process takes over the listening sockets."""

    socket: str = Field("data/proxy.handover", max_length=100)
    """Unix socket where `fairlead proxy --take-over` asks for them. Empty: they are not handed over."""


class StoreConfig(Section):
    """[store]: where runs are kept."""

    url: StoreUrl = "sqlite:///data/fairlead.db"
    """Where runs are kept: sqlite:///FILE for one proxy, postgresql://USER@HOST/NAME for several."""

    @property
    def is_postgres(self) -> bool:
        """Whether several proxies may share the store."""
        return self.url.startswith(POSTGRES)

    @property
    def path(self) -> str:
        """The SQLite file."""
        return self.url.removeprefix(SQLITE)
