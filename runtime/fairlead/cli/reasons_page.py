"""docs/reasons.md, generated from the one table: `fairlead check reason-codes --markdown > docs/reasons.md`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fairlead.protocol.reasons import TRAITS, Family, Reason


@dataclass(frozen=True, slots=True)
class Branch:
    """One branch of the tree for incidents: what is seen, and what is done, in order."""

    seen: str
    reasons: tuple[Reason, ...]
    steps: tuple[str, ...]


# Runbook 002's tree and its three alerts. The first rule stands above all of it: no check is turned off.
INCIDENTS: Final = (
    Branch(
        "A delivery came without an identity", (Reason.SECURITY_MISSING_IDENTITY_ENVELOPE,),
        ("Look at the proxy's version: it adds the identity envelope to every delivery.", "Submit the command again."),
    ),
    Branch(
        "A delivery came without a trust token, or with one that does not hold",
        (Reason.SECURITY_MISSING_INTERNAL_TRUST_CONTEXT, Reason.SECURITY_TRUST_TOKEN_INVALID,
         Reason.SECURITY_TRUST_TOKEN_EXPIRED),
        ("Compare `fairlead secret fingerprint` of the trust secret on both sides; then the clocks.",
         "Bring proxy and node to one version. The proxy signs the token itself: nobody adds one by hand.",
         "If secrets and clocks agree, treat it as an attack."),
    ),
    Branch(
        "A signed request came a second time", (Reason.SECURITY_REPLAY_DETECTED,),
        ("Do not send the same signature again: sign anew. Under its idempotency key that is safe.",
         "If the caller did not send it twice, find out who recorded it."),
    ),
    Branch(
        "The guard against replays cannot tell", (Reason.SECURITY_REPLAY_GUARD_UNAVAILABLE, Reason.STORE_UNAVAILABLE),
        ("Stay closed, and open an incident. Let callers pause what changes something.",
         "`fairlead ctl health` and `fairlead check schema-preflight` say how the store is; bring it back.",
         "If the memory is full, raise DISPATCH_MAX_NONCES, or find who signs so much.",
         "Resume when a request sent twice is refused the second time as `security_replay_detected`."),
    ),
    Branch(
        "An approval ran out, or was decided already",
        (Reason.HITL_TIMEOUT_FAIL_CLOSED, Reason.HITL_TERMINAL_STATE_IMMUTABLE),
        ("It stays as it is, for ever. Submit the command again: it gets an approval of its own.",),
    ),
    Branch(
        "Many denials at once", (Reason.UNAUTHENTICATED, Reason.SCOPE_MISSING, Reason.SIGNATURE_INVALID),
        ("`/metrics/reasons` says which reason leads, for the last five minutes and the last hour.",
         "`fairlead check reason-codes` and `fairlead check security-parity` say whether something drifted.",
         "If callers send what is malformed, tell them, and slow the loudest down. If we changed something, go back."),
    ),
    Branch(
        "Callers meet another tenant's data", (Reason.SECURITY_READ_TENANT_MISMATCH, Reason.SECURITY_TENANT_MISMATCH),
        ("Check what issues identities: the tenant claim (`jwt.tenant_claim`), the tenants of keys.",
         "Check the read scopes (`self`, `tenant`, `any`) against what was deployed lately.",
         "`fairlead check security-parity`. If something leaked, stay closed and escalate."),
    ),
    Branch(
        "What is stored is not what was written", (Reason.SECURITY_SEAL_INVALID, Reason.SECURITY_AUDIT_CHAIN_BROKEN),
        ("Find out who writes to the database, and close that way first.",
         "`fairlead seals check` names the rows; `fairlead ctl audit verify` names the place in the trail.",
         "Only after a deliberate restore: `fairlead seals adopt`."),
    ),
)  # fmt: skip


def markdown() -> str:
    """The page. A test compares it with the file."""
    parts = [
        "# Reasons\n\nEvery refusal and every failure has one of these. Generated from"
        " `protocol/fairlead/protocol/reasons.py` by `fairlead check reason-codes --markdown`."
        " HTTP is the status where the reason answers a request; how a run ended (family run) is told by its own"
        " status in a 200.\n"
    ]
    parts.append(
        "\n## In an incident\n\nFind what is seen, do the steps in their order. Whatever it is: never turn a check off"
        " to get service back; a check can be set to observe, for a time that is written down"
        " ([operations.md](operations.md)).\n"
    )
    for branch in INCIDENTS:
        codes = ", ".join(f"`{reason.value}`" for reason in branch.reasons)
        steps = "".join(f"{number}. {step}\n" for number, step in enumerate(branch.steps, 1))
        parts.append(f"\n**{branch.seen}**: {codes}\n\n{steps}")
    for family in Family:
        parts.append(
            f"\n## {family.value}\n\n| reason | HTTP | what | again? | next step |\n| --- | --- | --- | --- | --- |\n"
        )
        for reason, row in TRAITS.items():
            if row.family is family:
                again = {"retryable": "yes", "blocked": "no", "unknown": "look first"}[row.response.value]
                parts.append(f"| `{reason.value}` | {row.status} | {row.title} | {again} | {row.action} |\n")
    return "".join(parts)
