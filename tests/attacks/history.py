"""What others got wrong, each with the test that shows that it does not happen here.

`hole`: seven holes of the design that this one descends from; `CVE`: of a control plane that built its own messages and
cryptography as this one does; `trap`: mistakes that were seen in several forebears. Attacks on the HTTP surface stand in
`corpus.py` with what is sent; these rows concern the control channel, the store and the rest, where the tests that show
it stand beside what they test.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Lesson:
    """`tests`: FILE::TEST under tests/. One would do; several show several sides of it."""

    name: str
    what: str
    here: str
    tests: tuple[str, ...]


_CHANNEL, _ENVELOPE = "unit/protocol/test_channel.py", "unit/protocol/test_envelope.py"
_ADMISSION, _MIRROR, _CHAIN = (
    "unit/proxy/test_admission.py",
    "unit/backend/test_mirror.py",
    "shell/test_guard_chain.py",
)
_HOSTILE, _GUARDS, _CONFIG = (
    "shell/test_hostile_node.py",
    "e2e/test_guards.py",
    "unit/proxy/test_proxy_config.py",
)

HISTORY = (
    # -- the seven holes
    Lesson("hole 1", "messages were valid for longer than they were remembered, and could be replayed in between",
           "counters under fresh keys on a link; nonces are remembered for at least twice the skew, or the configuration is refused",
           (f"{_CHANNEL}::test_a_whole_recorded_stream_never_becomes_a_link",
            f"{_CHAIN}::test_a_signed_request_is_taken_once_in_the_whole_time_that_it_is_valid",
            f"{_CONFIG}::test_contradictions_and_malformed_values")),
    Lesson("hole 2", "a full memory of nonces forgot the oldest: flood it, then replay",
           "a full memory refuses and forgets nothing that counts",
           (f"{_ADMISSION}::test_a_full_memory_refuses_and_never_evicts_what_still_counts",
            f"{_CHAIN}::test_a_full_table_refuses_and_lets_nothing_old_pass",
            "attacks/test_corpus.py::test_a_full_memory_of_nonces_refuses_and_lets_nothing_recorded_pass")),
    Lesson("hole 3", "one secret for all, and the sender said itself who it was",
           "a key for each identity and role; the sender must be the key's",
           (f"{_CHANNEL}::test_a_key_of_another_role_identity_or_epoch_opens_nothing",
            f"{_ENVELOPE}::test_each_check_has_its_own_reason", "unit/protocol/test_keys.py::test_no_two_keys_are_the_same")),
    Lesson("hole 4", "the previous secret was known to one part only, so that the documented rotation broke the channel",
           "current and previous on both sides, counted, rehearsed",
           ("e2e/test_rotation.py::test_the_secret_is_rotated_without_losing_a_node",
            f"{_ADMISSION}::test_the_current_key_and_during_the_overlap_the_previous_one")),
    Lesson("hole 5", "datagrams in the clear, and a memory of replays that a restart forgot",
           "Noise with fresh keys for each link; what was used up is in the store",
           (f"{_CHANNEL}::test_nothing_of_a_handshake_is_the_same_twice",
            f"{_GUARDS}::test_a_recorded_request_is_refused_after_a_sigkill_too")),
    Lesson("hole 6", "the registry had no generation: an older one rolled it back, and it had to fit one datagram",
           "fleet, epoch, generation and digest are checked before anything is applied; snapshots come in chunks",
           (f"{_MIRROR}::test_an_old_snapshot_after_a_new_one_is_refused",
            f"{_MIRROR}::test_a_snapshot_in_chunks_of_any_size")),
    Lesson("hole 7", "a secret was strong unless it was one of four words", "32 random bytes, judged at load",
           ("unit/runtime/test_secret.py::test_weak_and_unreadable_secrets_are_refused_with_the_reason",
            f"{_CONFIG}::test_weak_secrets_are_refused")),
    # -- lessons of CVEs
    Lesson("CVE-2020-11651", "methods that nobody meant to publish could be called before anybody had proved who they are",
           "one table of who may send what, tested both ways; nothing is heard before hello; endpoints are a table too",
           (f"{_ENVELOPE}::test_each_role_may_send_what_is_on_its_list_and_nothing_else",
            f"{_HOSTILE}::test_nothing_is_heard_before_hello_and_hello_only_once",
            "shell/test_contract.py::test_every_endpoint_refuses_whom_it_must")),
    Lesson("CVE-2020-11652", "a path from a message reached the file system", "no paths on the wire; ids by their pattern",
           ("unit/protocol/test_preamble.py::test_each_field_is_checked",
            "unit/protocol/test_preamble.py::test_an_id_of_64_bytes_is_one_too_many_for_the_pattern")),
    Lesson("CVE-2022-22935", "answers to a handshake were not authenticated, so anybody in between could turn nodes away",
           "verdicts come inside the authenticated answer", (f"{_CHANNEL}::test_no_common_version_is_told_encrypted_and_known_on_both_sides",
            f"{_CHANNEL}::test_every_byte_of_both_handshake_messages_is_authenticated",
            f"{_CHANNEL}::test_a_proxy_without_the_secret_is_refused_by_the_dialler")),
    Lesson("CVE-2022-22936", "jobs could be replayed, and ran again", "fences, inboxes, tokens of one delivery",
           ("shell/test_inbox.py::test_a_redelivery_gets_the_stored_result_and_nothing_runs_again",
            "unit/protocol/test_trust.py::test_a_token_is_of_one_delivery", f"{_CHANNEL}::test_frames_out_of_place_end_the_link")),
    Lesson("CVE-2022-22934", "what was meant for one node was not signed for it", "tokens and keys are of one node and one inbox",
           ("unit/protocol/test_trust.py::test_a_token_is_for_one_node_and_one_inbox",)),
    Lesson("CVE-2022-22941", "whom a message is for was not part of what was authenticated",
           "the audience is in the envelope and checked at the receiver",
           (f"{_ENVELOPE}::test_each_check_has_its_own_reason",
            f"{_CHANNEL}::test_another_proxy_than_the_expected_one_is_refused")),
    Lesson("CVE-2024-38823", "replay was repaired message by message, and one was forgotten for two years",
           "replay is excluded by how a link is made, and at the HTTP surface for every signed call",
           (f"{_CHANNEL}::test_a_whole_recorded_stream_never_becomes_a_link",
            f"{_CHAIN}::test_any_signed_call_is_taken_once_and_a_bad_signature_is_refused_anywhere")),
    Lesson("CVE-2025-62349", "the peer chose an older version of the envelope, and with it fewer checks",
           "versions are our own policy and part of the handshake's hash",
           (f"{_CHANNEL}::test_every_byte_of_the_preamble_is_bound", f"{_CHANNEL}::test_the_highest_common_version_is_spoken",
            f"{_ENVELOPE}::test_the_version_is_judged_before_anything_else_is_decoded")),
    Lesson("CVE-2013-4439, CVE-2016-9639", "any valid key spoke for any node; a name that was used again inherited what was kept",
           "identity is the key's; revoking raises the epoch, so an old key of a name stays worthless",
           (f"{_ADMISSION}::test_a_revoked_key_is_known_as_revoked",
            f"{_HOSTILE}::test_a_statement_about_another_nodes_run_is_foreign")),
    Lesson("CVE-2022-22967", "a locked account went on working where it had been let in",
           "every call is judged anew; revoking ends live links",
           (f"{_HOSTILE}::test_revoking_ends_the_link_and_the_key", "shell/test_client_link.py::test_a_revoked_client_loses_its_link_and_gets_no_other",
            "e2e/test_callers.py::test_a_key_revoked_at_one_proxy_is_worthless_at_the_other")),
    Lesson("peer: proof of proxy", "a connection's token was believed for 30 s and remembered for 10, and not across a restart",
           "remembered for ttl and twice the clocks' difference; bound to one run of the gate",
           ("unit/protocol/test_proof.py::test_a_token_is_believed_once_for_as_long_as_it_is_valid",
            "unit/protocol/test_proof.py::test_after_a_restart_only_what_cannot_have_been_used_is_judged")),
    # -- traps
    Lesson("trap: window and memory", "a memory shorter than what is valid", "such a configuration is refused",
           (f"{_CONFIG}::test_contradictions_and_malformed_values",)),
    Lesson("trap: order of checks", "a nonce was registered before anybody had proved anything, so anybody could fill the table",
           "authenticated first; each check has its place",
           (f"{_ENVELOPE}::test_a_nonce_is_not_remembered_where_an_earlier_check_refused",
            f"{_CHANNEL}::test_the_memory_of_first_messages_is_asked_only_after_authentication",
            f"{_CHAIN}::test_nobody_unauthenticated_is_counted")),
    Lesson("trap: version after decoding", "another version was called malformed",
           "the version is judged before the rest is decoded",
           (f"{_ENVELOPE}::test_a_future_version_of_any_shape_is_a_mismatch_and_not_malformed",)),
    Lesson("trap: claims about others", "a node's payload spoke about another node", "what a node states is judged by whose run it is",
           (f"{_HOSTILE}::test_a_statement_about_another_nodes_run_is_foreign",
            f"{_HOSTILE}::test_leases_of_others_cannot_be_renewed")),
    Lesson("trap: old snapshots, lost pushes", "an old snapshot came after a new one, a push was lost after `synchronized`",
           "generations, and heartbeats that say what is held",
           (f"{_MIRROR}::test_an_old_snapshot_after_a_new_one_is_refused", f"{_HOSTILE}::test_a_lost_push_is_healed_by_the_next_heartbeat")),
    Lesson("trap: a publisher that starts empty", "it wiped its subscribers", "a registry of nothing is not sent because nothing is known",
           (f"{_MIRROR}::test_whatever_happens_the_node_ends_with_what_the_owner_holds",)),
    Lesson("trap: names", "permissions by name, and a wildcard without its dot", "principals are keys; a wildcard needs its dot",
           ("unit/proxy/guard/test_access.py::test_a_wildcard_needs_its_dot",)),
    Lesson("trap: part of a message signed", "body or fields only, and the rest was free", "every part of a request and of a delivery is covered",
           ("unit/runtime/test_request_signing.py::test_each_part_of_the_request_is_signed",
            "unit/protocol/test_trust.py::test_every_field_is_covered_but_what_changes_nothing",
            "unit/runtime/test_signing.py::test_every_byte_of_a_long_body_is_signed")),
    Lesson("trap: encodings that differ", "tool and server spelled a signature differently", "what the tool prints is what is judged, and the README's lines too",
           ("e2e/test_callers.py::test_what_sign_prints_is_what_curl_sends",
            "unit/runtime/test_request_signing.py::test_the_lines_of_the_readme_sign_so")),
    Lesson("trap: a default secret", "one was in the code", "without a secret nothing starts",
           (f"{_CONFIG}::test_a_secret_is_required_and_the_operators_key_too",)),
    Lesson("trap: an outage called a replay", "a store that was away was told as a replay", "they are two reasons, 503 and 409",
           (f"{_CHAIN}::test_a_store_that_cannot_tell_refuses",
            f"{_GUARDS}::test_a_store_that_is_gone_closes_the_guard_and_leaves_people_their_eyes")),
    Lesson("trap: guards on requests", "a guard bounded requests and not attempts; the monthly counter was never reset",
           "attempts are counted, in the transaction that makes the run",
           ("unit/proxy/test_replay.py::test_budgets_are_spent_in_the_order_of_the_records_per_tenant",
            "unit/proxy/test_replay.py::test_force_is_no_way_around_a_budget")),
    Lesson("trap: a limiter that fails open", "when it failed everybody passed", "what changes something is refused then",
           (f"{_CHAIN}::test_reads_go_on_without_a_store_and_changes_do_not",)),
    Lesson("trap: health of a listener", "health only said that a port was open", "as well as its worst part",
           ("unit/proxy/test_health.py::test_the_whole_is_as_well_as_its_worst_part_and_not_as_its_listener",)),
    Lesson("trap: handlers in the receive loop", "one slow handler held up everybody", "workers of their own",
           ("shell/test_inbox.py::test_a_slow_handler_holds_up_no_other",)),
    Lesson("trap: broadcast for unicast", "every backend saw every answer", "a result goes to whom it belongs",
           ("shell/test_links.py::test_a_result_goes_to_the_proxy_that_asked_and_to_no_other",)),
    Lesson("trap: whose address", "anybody could say where they come from", "forwarded addresses count from listed networks",
           ("unit/proxy/edge/test_edge_forward_headers.py::test_the_clients_own_word_on_who_it_is_counts_only_if_trusted",)),
    Lesson("trap: features with no code", "a README named what was not there", "what documents name is compared with the code",
           ("test_documents.py::test_commands_that_the_documents_name_exist", "test_documents.py::test_the_page_of_the_api_names_every_endpoint")),
    # -- of issue 5, where processes or stores are needed that the corpus does not have
    Lesson("ten thousand nonces", "as fast as they can be sent", "each is taken once",
           (f"{_GUARDS}::test_ten_thousand_nonces_are_each_taken_once",)),
    Lesson("two proxies", "a recorded request at the other proxy", "taken once in all",
           (f"{_GUARDS}::test_two_proxies_take_a_recorded_request_once",)),
    Lesson("rows written by hand", "a row that somebody put into the database", "its seal does not hold, so it grants nothing",
           ("shell/test_sealed_store.py::test_a_run_that_somebody_put_in_is_never_handed_out",
            "shell/test_store_contract_keys.py::test_a_row_that_somebody_changed_or_put_in_grants_nothing")),
    Lesson("an audit trail written anew", "a row changed, removed, reordered", "the chain names where",
           ("unit/runtime/test_audit_chain.py::test_tampering_is_found_and_it_is_said_where",)),
)  # fmt: skip
