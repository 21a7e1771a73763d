"""Proof of proxy: tokens of connections, proofs of requests, the PROXY codec, the gate."""

from __future__ import annotations

from typing import Final

from tests.sim.mutation import Mutant

PROOF: Final = "protocol/fairlead/protocol/proof.py"
REQUEST: Final = "protocol/fairlead/protocol/request_proof.py"
HEADER: Final = "protocol/fairlead/protocol/proxy_header.py"
GATE: Final = "backend/fairlead/backend/gate/gate.py"
REQUESTS: Final = "backend/fairlead/backend/gate/requests.py"
PROOFS: Final = "proxy/fairlead/proxy/edge/proofs.py"

TEST_PROOF: Final = "tests/unit/protocol/test_proof.py"
TEST_HEADER: Final = "tests/unit/protocol/test_proxy_header.py"
TEST_GATE: Final = "tests/shell/test_gate.py"
TEST_GATE_HTTP: Final = "tests/shell/test_gate_http.py"
TEST_EDGE_GATE: Final = "tests/shell/test_edge_gate.py"

MUTANTS: Final = (
    Mutant(
        "proof_covers_the_token_alone",
        "A proof is a MAC over its token and not over the header: any client may be put into it.",
        PROOF,
        "_mac(key.key, raw[:-MAC_BYTES])",
        "_mac(key.key, token[:-MAC_BYTES])",
        (f"{TEST_PROOF}::test_a_good_header_says_whose_the_connection_is",),
    ),
    Mutant(
        "proof_not_the_last_field",
        "What stands behind a proof in the header is believed with it.",
        PROOF,
        " or header.tlvs[-1][0] != TOKEN_FIELD",
        "",
        (f"{TEST_PROOF}::test_each_cause",),
    ),
    Mutant(
        "proof_of_any_kind",
        "A token for HTTP opens a gate of TCP, behind which nobody asks for proofs of requests.",
        PROOF,
        "if token[1] not in kinds:",
        "if not token[1]:",
        (f"{TEST_PROOF}::test_each_cause",),
    ),
    Mutant(
        "proof_lives_as_long_as_it_says",
        "Who makes a token chooses for how long it is believed, and it outlives its memory.",
        PROOF,
        "ttl_ms = min(ttl_ms, self._ttl_ms_max)",
        "ttl_ms = max(ttl_ms, 0)",
        (f"{TEST_PROOF}::test_each_cause",),
    ),
    Mutant(
        "proof_remembered_for_its_ttl",
        "A used token is forgotten while clocks that differ still let it be believed.",
        PROOF,
        "kept_ms = self._ttl_ms_max + 2 * self._skew_ms_max",
        "kept_ms = self._ttl_ms_max",
        (f"{TEST_PROOF}::test_a_token_is_believed_once_for_as_long_as_it_is_valid",),
    ),
    Mutant(
        "proof_memory_evicts",
        "A full memory of used tokens forgets the oldest to make room.",
        PROOF,
        'return Unproven(Cause.FULL, f"{self._nonces_max} tokens are remembered")',
        "self._nonces.discard(self._order.popleft()[1])",
        (f"{TEST_PROOF}::test_a_full_memory_refuses_and_forgets_nobody",),
    ),
    Mutant(
        "proof_from_before_the_restart",
        "A token that was used just before the gate started is believed once more.",
        PROOF,
        "if boot != self.boot and issued_at_ms <= self._started_ms:",
        "if boot != self.boot and issued_at_ms <= self._started_ms - 2 * self._skew_ms_max:",
        (f"{TEST_PROOF}::test_after_a_restart_only_what_cannot_have_been_used_is_judged",),
    ),
    Mutant(
        "proof_after_a_clock_set_back",
        "Once the clock was set back, tokens whose nonces are forgotten are believed again.",
        PROOF,
        "if issued_at_ms <= self._forgotten_ms:",
        "if issued_at_ms < 0:",
        (f"{TEST_PROOF}::test_a_clock_that_is_set_back_lets_nothing_in_twice",),
    ),
    Mutant(
        "proof_key_dropped_at_once",
        "A rotation refuses what was on its way under the key before.",
        PROOF,
        "self._retired_until_ms = now_ms + self._ttl_ms_max + self._skew_ms_max",
        "self._retired_until_ms = now_ms",
        (f"{TEST_PROOF}::test_both_keys_are_believed_while_they_rotate",),
    ),
    Mutant(
        "request_repeated",
        "A proven request may be sent again, or left out.",
        REQUEST,
        "if int(number) != self._number + 1:",
        "if int(number) < 1:",
        (f"{TEST_PROOF}::test_requests_hold_in_their_place_only",),
    ),
    Mutant(
        "request_forwarded_for_anybody",
        "The forwarding headers of a proven request are nobody's word.",
        REQUEST,
        'covered = b"%b\\n%b %b\\n%b" % (claim, method, target, forwarded)',
        'covered = b"%b\\n%b %b\\n" % (claim, method, target)',
        (f"{TEST_PROOF}::test_requests_hold_in_their_place_only",),
    ),
    Mutant(
        "proxy_header_field_twice",
        "A PROXY header may hold a field twice: two readers may take another one each.",
        HEADER,
        "if kind in seen:",
        "if kind in ():",
        (f"{TEST_HEADER}::test_everything_else_is_refused",),
    ),
    Mutant(
        "proxy_header_checksum_unread",
        "A PROXY header's checksum is not verified.",
        HEADER,
        'if crc32c(zeroed) != int.from_bytes(value, "big"):',
        'if not crc32c(zeroed) and int.from_bytes(value, "big"):',
        (f"{TEST_HEADER}::test_everything_else_is_refused",),
    ),
    Mutant(
        "gate_in_development_believes_bad_tokens",
        "Where no proof is asked for, a bad one passes too.",
        GATE,
        "if judged.cause is Cause.MISSING and not self._settings.enforce:",
        "if not self._settings.enforce:",
        (f"{TEST_GATE}::test_in_development_what_has_no_token_passes_and_what_has_a_bad_one_does_not",),
    ),
    Mutant(
        "gate_held_by_silence",
        "Who opens connections and says nothing keeps the proxy out.",
        GATE,
        "self._unproven.pop(oldest).cancel()",
        "raise trio.BrokenResourceError(str(oldest))",
        (f"{TEST_GATE}::test_who_is_silent_for_longest_makes_way",),
    ),
    Mutant(
        "gate_passes_on_what_the_client_claims",
        "The address that a header claims reaches the server beside the true one.",
        REQUESTS,
        "if name != _REAL_IP and self._judge is not None:",
        "if name != _REAL_IP or self._judge is None:",
        (f"{TEST_GATE_HTTP}::test_in_development_requests_without_proof_are_the_callers_own",),
    ),
    Mutant(
        "gate_switches_unasked",
        "After a request for another protocol bytes pass unread, whatever the server answers.",
        REQUESTS,
        'self._is_raw = status == b"101"',
        'self._is_raw = status != b"100"',
        (f"{TEST_GATE_HTTP}::test_a_server_that_does_not_switch_gets_requests_as_before",),
    ),
    Mutant(
        "gate_upgrade_behind_another_request",
        "An answer to an earlier request may be taken for the answer to one for another protocol.",
        REQUESTS,
        "if wants_upgrade and not self._is_answered:",
        "if wants_upgrade and self._is_raw:",
        (f"{TEST_GATE_HTTP}::test_nobody_asks_to_switch_behind_a_request_without_an_answer",),
    ),
    Mutant(
        "http_connection_named_after_its_first_client",
        "A connection for the requests of many clients carries no key for their proofs.",
        PROOFS,
        "if purpose.kind is not ProofKind.TCP:\n            purpose.signer",
        "if purpose.kind is ProofKind.TCP:\n            purpose.signer",
        (f"{TEST_EDGE_GATE}::test_clients_share_a_proven_connection_and_are_told_apart",),
    ),
)
