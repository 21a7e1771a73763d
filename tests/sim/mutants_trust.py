"""Seals and trust tokens: what somebody can do who writes to the database, or says to a node what no proxy meant."""

from __future__ import annotations

from typing import Final

from tests.sim.mutation import Mutant

STORE: Final = "proxy/fairlead/proxy/store/"
TRUST: Final = "protocol/fairlead/protocol/trust.py"
TEST_SEALED: Final = "tests/shell/test_sealed_store.py"
TEST_TRUST: Final = "tests/unit/protocol/test_trust.py"
TEST_TOKENS: Final = "tests/shell/test_trust_tokens.py"
TEST_APPROVALS: Final = "tests/shell/test_store_contract_approvals.py"
TEST_AUDIT: Final = "tests/shell/test_audit_trail.py"
TEST_NO_AUDIT: Final = "tests/shell/test_no_audit_no_action.py"

MUTANTS: Final = (
    Mutant(
        "forged_run_handed_out",
        "A run is handed out whatever somebody wrote into its row.",
        f"{STORE}sealed_runs.py",
        """\
    return seals.holds_plain(RUN_KIND, row[_SEAL_AT], _run_fields(row)) and seals.holds_plain(""",
        """\
    return seals.holds_plain(""",
        (
            f"{TEST_SEALED}::test_a_run_that_somebody_changed_is_never_handed_out[sqlite inline-tenant = 'rich']",
        ),
    ),
    Mutant(
        "forged_delivery_made_good",
        "A legitimate change of how a run stands makes good what somebody had changed by hand.",
        f"{STORE}sealed_runs.py",
        """\
_delivery_fields_by_name(row)):
        return b\"\"""",
        """\
_delivery_fields_by_name(row)):
        pass""",
        (f"{TEST_SEALED}::test_what_is_legitimate_makes_nothing_good[sqlite inline-refused]",),
    ),
    Mutant(
        "older_row_believed",
        "A row that a proxy had sealed once is believed when somebody puts it back.",
        f"{STORE}sealed_tables.py",
        "if seals.holds(table.kind, seal, *table.sealed(values)) and listed.get(key) == bytes(seal):",
        "if seals.holds(table.kind, seal, *table.sealed(values)):",
        (
            f"{TEST_SEALED}::test_an_older_row_that_somebody_put_back_is_not_believed[sqlite inline-key_epochs]",
        ),
    ),
    Mutant(
        "row_taken_away_unnoticed",
        "A revocation that somebody takes out of the table is forgotten.",
        f"{STORE}sealed_tables.py",
        "return Believed(good, frozenset(bad | (listed.keys() - good.keys())))",
        "return Believed(good, frozenset(bad))",
        (f"{TEST_SEALED}::test_a_change_that_is_legitimate_vouches_for_no_other_row[sqlite inline]",),
    ),
    Mutant(
        "renewing_makes_good",
        "A new secret's seals are put over what did not hold under the previous one.",
        f"{STORE}resealing.py",
        "good_runs = [row for row in page if sealed_runs.row_holds(seals, row)]",
        "good_runs = list(page)",
        (f"{TEST_SEALED}::test_renewing_makes_nothing_good[sqlite inline]",),
    ),
    Mutant(
        "replay_nobody_asked_for",
        "A record that somebody marks for replay by hand is replayed.",
        f"{STORE}dead_letters.py",
        "and REPLAY_REQUESTS.holds(seals, (*values, seal))",
        "",
        (f"{TEST_SEALED}::test_a_record_that_somebody_marked_for_replay_is_not_replayed[sqlite inline]",),
    ),
    Mutant(
        "token_for_any_node",
        "A trust token of one node is believed by another.",
        TRUST,
        "_VERSION, head, node_id, incarnation, delivery.run_id,",
        "_VERSION, head, delivery.run_id,",
        (f"{TEST_TRUST}::test_a_token_is_for_one_node_and_one_inbox",),
    ),
    Mutant(
        "token_of_any_arguments",
        "Other arguments go under the token of a delivery.",
        TRUST,
        "delivery.descriptor_digest, delivery.args_json, delivery.tenant,",
        "delivery.descriptor_digest, delivery.tenant,",
        (f"{TEST_TRUST}::test_a_token_is_of_one_delivery[args_json]",),
    ),
    Mutant(
        "token_without_end",
        "A trust token is believed for ever.",
        TRUST,
        "if now_ms > issued_at_ms + ttl_ms + self._skew_ms_max:",
        "if now_ms > issued_at_ms + ttl_ms + self._skew_ms_max * 10**9:",
        (f"{TEST_TRUST}::test_it_is_believed_for_as_long_as_both_sides_say",),
    ),
    Mutant(
        "forged_delivery_ends_a_run",
        "A delivery that nobody meant is answered with a failure for a run that completed here.",
        "backend/fairlead/backend/executor.py",
        "if run_id not in known and run_id not in self.active:",
        "if run_id not in self.active:",
        (f"{TEST_TOKENS}::test_of_a_run_that_is_known_nothing_is_said[no token]",),
    ),
    Mutant(
        "seals_not_verified_at_claim",
        "What waits is handed out without a look at its seals.",
        f"{STORE}journey.py",
        "if sealed_runs.holds(seals, row) and _is_approved(grants, row, digests, changed)",
        "if _is_approved(grants, row, digests, changed)",
        (
            f"{TEST_SEALED}::test_a_run_that_somebody_changed_is_never_handed_out[sqlite inline-tenant = 'rich']",
        ),
    ),
    Mutant(
        "approval_not_verified_at_claim",
        "Whether a run was approved is not looked at again when it is handed out.",
        f"{STORE}journey.py",
        "    return why is None\n",
        "    return why is not Reason.APPROVAL_PLAN_CHANGED\n",
        (
            f"{TEST_APPROVALS}::test_what_an_approved_run_lost_its_approval_for_does_not_execute[sqlite inline]",
        ),
    ),
    Mutant(
        "silence_is_a_yes",
        "A vote that comes too late counts.",
        f"{STORE}approval_decisions.py",
        "if approval.expires_at_ms <= clock_ms:",
        "if approval.expires_at_ms <= 0:",
        (f"{TEST_APPROVALS}::test_a_vote_that_comes_too_late_ends_it[sqlite inline]",),
    ),
    Mutant(
        "row_beside_the_chain",
        "A row of the audit trail does not hold the hash of the one before it.",
        f"{STORE}audit.py",
        "head.seq + 1, head.hash, _id_of(event)",
        "head.seq + 1, GENESIS.hex(), _id_of(event)",
        (f"{TEST_AUDIT}::test_each_row_has_the_hash_of_the_one_before_it[sqlite inline]",),
    ),
    Mutant(
        "budget_without_its_row",
        "A budget is changed, and the audit trail says nothing of it.",
        f"{STORE}controls.py",
        "    audit(db, event, before=held, after=[daily, monthly])\n",
        "",
        (f"{TEST_NO_AUDIT}::test_without_its_audit_row_it_did_not_happen[sqlite inline-a budget is set]",),
    ),
)
