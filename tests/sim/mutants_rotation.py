"""Mutants of rotation, of what a signature alone allows, and of nonces that many ask for at once: see `mutation`."""

from __future__ import annotations

from typing import Final

from tests.sim.mutation import Mutant

ROTATION: Final = "proxy/fairlead/proxy/guard/rotation.py"
GUARDS: Final = "proxy/fairlead/proxy/store/guards.py"
GATHERED: Final = "proxy/fairlead/proxy/store/gathered.py"
TEST_RULES: Final = "tests/unit/proxy/guard/test_rotation_rules.py"
TEST_NONCES: Final = "tests/shell/test_store_contract_guards.py"

MUTANTS: Final = (
    Mutant(
        "secret_in_use_dropped",
        "A reload drops the secret in use.",
        ROTATION,
        "if before.current is not None and before.current not in kept:",
        "if before.current is None and before.current not in kept:",
        (f"{TEST_RULES}::test_a_change_is_allowed_where_it_strands_nobody",),
    ),
    Mutant(
        "previous_secret_dropped_too_early",
        "The previous secret goes while somebody needs it.",
        ROTATION,
        "and print_of(gone) != released and needed_by:",
        "and print_of(gone) != released and not needed_by:",
        (f"{TEST_RULES}::test_a_change_is_allowed_where_it_strands_nobody",),
    ),
    Mutant(
        "any_secret_was_released",
        "What was released for one secret holds for another one.",
        ROTATION,
        "gone not in kept and print_of(gone) != released and",
        "gone not in kept and not released and",
        (f"{TEST_RULES}::test_what_was_released_may_go_although_somebody_needs_it_and_nothing_else",),
    ),
    Mutant(
        "sealed_before_others_believe",
        "One proxy seals under a secret that the others do not believe yet.",
        ROTATION,
        "if kind is Kind.PROXY and is_shared and",
        "if kind is Kind.PROXY and not is_shared and",
        (f"{TEST_RULES}::test_a_change_is_allowed_where_it_strands_nobody",),
    ),
    Mutant(
        "announced_by_a_new_expiry",
        "With a new expiry a previous secret passes for one that was never in use, and nobody is asked who needs it.",
        ROTATION,
        "        return was_announced\n",
        "        return True\n",
        (f"{TEST_RULES}::test_announced_is_what_was_never_in_use",),
    ),
    Mutant(
        "not_watched_long_enough",
        "A secret that was watched for a moment is taken for one that nobody needs.",
        ROTATION,
        "if not found and watched_ms < quiet_ms:",
        "if not found and watched_ms < 0:",
        (f"{TEST_RULES}::test_a_secret_is_needed_while_it_was_used_lately_or_not_watched_long_enough",),
    ),
    Mutant(
        "watch_goes_on_over_a_change",
        "What was seen of a secret before it was announced counts as a watch over it.",
        ROTATION,
        "        self._since_ms[kind] = now_ms\n",
        "",
        (f"{TEST_RULES}::test_a_secret_is_needed_while_it_was_used_lately_or_not_watched_long_enough",),
    ),
    Mutant(
        "latest_callers_forgotten_first",
        "Of many callers of an old secret the one that used it just now is forgotten.",
        ROTATION,
        "            del last[next(iter(last))]\n",
        "            last.popitem()\n",
        (f"{TEST_RULES}::test_who_used_a_secret_is_bounded_and_the_latest_are_kept",),
    ),
    Mutant(
        "operate_without_replay",
        "A key that had operate loses the replay of dead letters.",
        "proxy/fairlead/proxy/guard/access.py",
        ' or _INCLUDED_IN.get(scope, "") in caller.scopes',
        "",
        ("tests/unit/proxy/guard/test_access.py::test_a_scope_narrows_a_role_and_never_widens_it",),
    ),
    Mutant(
        "nonce_of_two_in_one_statement",
        "Of two who ask for one nonce together both get it.",
        GUARDS,
        "outcomes.append(None if by == each.by else _replayed())",
        "outcomes.append(None)",
        (f"{TEST_NONCES}::test_who_asks_together_is_answered_each_for_its_own[sqlite inline]",),
    ),
    Mutant(
        "room_for_any_number_together",
        "Nonces that many ask for at once go beyond what may be remembered.",
        GUARDS,
        "list(new.values())[: _room(db, new.values())]",
        "list(new.values())",
        (
            f"{TEST_NONCES}::test_ten_thousand_nonces_at_once_are_taken_once_each_within_the_bound[sqlite inline]",
        ),
    ),
    Mutant(
        "answers_of_others",
        "Who asks for a nonce together with others hears what became of another one's.",
        GATHERED,
        "in zip(batch, outcomes, strict=True):",
        "in zip(batch, outcomes[::-1], strict=True):",
        (f"{TEST_NONCES}::test_who_asks_together_is_answered_each_for_its_own[sqlite inline]",),
    ),
    Mutant(
        "forged_end_told_to_nobody",
        "A run that a claim found forged ends, and nobody is told.",
        "proxy/fairlead/proxy/dispatch/dispatcher.py",
        "        await self.settler.ended(self._store.ended_by_claims())\n",
        "        self._store.ended_by_claims()\n",
        (
            "tests/sim/test_found_by_seeds.py::"
            "test_a_run_that_a_claim_found_forged_is_told_and_counted_though_the_store_goes_away_then",
        ),
    ),
)
