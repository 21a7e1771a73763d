"""The channel: envelopes, handshakes, keys, who may link. Most are holes that somebody's channel really had."""

from __future__ import annotations

from typing import Final

from tests.sim.mutation import Mutant

ENVELOPE: Final = "protocol/fairlead/protocol/envelope.py"
CHANNEL: Final = "protocol/fairlead/protocol/channel.py"
ADMISSION: Final = "proxy/fairlead/proxy/control/admission.py"
NOISE: Final = "protocol/fairlead/protocol/noise.py"
KEYS: Final = "protocol/fairlead/protocol/keys.py"
CONFIG_MODEL: Final = "runtime/fairlead/runtime/config_model.py"
LINK: Final = "proxy/fairlead/proxy/control/link.py"
CONTROL: Final = "proxy/fairlead/proxy/control/control.py"
SECRET: Final = "runtime/fairlead/runtime/secret.py"

TEST_ENVELOPE: Final = "tests/unit/protocol/test_envelope.py"
TEST_CHANNEL: Final = "tests/unit/protocol/test_channel.py"
TEST_ADMISSION: Final = "tests/unit/proxy/test_admission.py"
TEST_KEYS: Final = "tests/unit/protocol/test_keys.py"
TEST_PROXY_CONFIG: Final = "tests/unit/proxy/test_proxy_config.py"
TEST_HOSTILE_NODE: Final = "tests/shell/test_hostile_node.py"
TEST_SECRET: Final = "tests/unit/runtime/test_secret.py"

MUTANTS: Final = (
    Mutant(
        "sender_not_checked",
        "An envelope may name any sender: any node speaks as any other, or as the proxy.",
        ENVELOPE,
        "if sender != self._sender:",
        "if not sender:",
        (f"{TEST_ENVELOPE}::test_everything_wrong_at_once_is_named_by_the_first_check",),
    ),
    Mutant(
        "audience_not_checked",
        "What was meant for another peer is taken.",
        ENVELOPE,
        "if audience != self._audience:",
        "if not audience:",
        (f"{TEST_ENVELOPE}::test_of_two_flaws_the_earlier_check_is_named[WRONG_AUDIENCE-INVALID_TIMESTAMP]",),
    ),
    Mutant(
        "window_wider_than_validity",
        "An envelope is taken for the longest time that any may live, not for its own.",
        ENVELOPE,
        "issued_at_ms + ttl_ms + skew:",
        "issued_at_ms + self._limits.ttl_ms_max + skew:",
        (
            f"{TEST_ENVELOPE}::test_an_envelope_is_good_for_its_own_time_and_not_for_the_longest_that_any_may_have",
        ),
    ),
    Mutant(
        "ttl_without_bound",
        "The sender chooses how long its envelope lives.",
        ENVELOPE,
        "if not 0 < ttl_ms <= self._limits.ttl_ms_max:",
        "if ttl_ms <= 0:",
        (f"{TEST_ENVELOPE}::test_times_out_of_bounds",),
    ),
    Mutant(
        "nonce_not_increasing",
        "Only the very last nonce is refused, every earlier one passes again.",
        ENVELOPE,
        "if nonce <= self._last_nonce:",
        "if nonce == self._last_nonce:",
        (f"{TEST_ENVELOPE}::test_a_nonce_counts_up_and_may_jump",),
    ),
    Mutant(
        "nonce_before_the_checks",
        "A refused envelope uses up its nonce, so that the real one is taken for a replay.",
        ENVELOPE,
        """\
        skew = self._limits.skew_ms_max
        if not 0 < ttl_ms <= self._limits.ttl_ms_max:
            return Reject(Reason.INVALID_TIMESTAMP, f"ttl of {ttl_ms} ms, at most {self._limits.ttl_ms_max}")
        if not issued_at_ms - skew <= now_ms <= issued_at_ms + ttl_ms + skew:
            return Reject(Reason.INVALID_TIMESTAMP, f"issued {now_ms - issued_at_ms} ms ago by our clock")
        # The header is bounded apart from the body, so what is left of a packet is its payload.
        if len(raw) - _header_bytes(sender, audience, correlation_id) > self._limits.payload_bytes_max:
            return Reject(Reason.PAYLOAD_TOO_LARGE, f"at most {self._limits.payload_bytes_max} bytes")
        if nonce <= self._last_nonce:
            return Reject(_replay_reason(number), f"nonce {nonce} after {self._last_nonce}")
        self._last_nonce = nonce
""",
        """\
        if nonce <= self._last_nonce:
            return Reject(_replay_reason(number), f"nonce {nonce} after {self._last_nonce}")
        self._last_nonce = nonce
        skew = self._limits.skew_ms_max
        if not 0 < ttl_ms <= self._limits.ttl_ms_max:
            return Reject(Reason.INVALID_TIMESTAMP, f"ttl of {ttl_ms} ms, at most {self._limits.ttl_ms_max}")
        if not issued_at_ms - skew <= now_ms <= issued_at_ms + ttl_ms + skew:
            return Reject(Reason.INVALID_TIMESTAMP, f"issued {now_ms - issued_at_ms} ms ago by our clock")
        if len(raw) - _header_bytes(sender, audience, correlation_id) > self._limits.payload_bytes_max:
            return Reject(Reason.PAYLOAD_TOO_LARGE, f"at most {self._limits.payload_bytes_max} bytes")
""",
        (f"{TEST_ENVELOPE}::test_a_nonce_is_not_remembered_where_an_earlier_check_refused",),
    ),
    Mutant(
        "version_after_decoding",
        "A future version is called malformed, because it is decoded first.",
        ENVELOPE,
        """\
        version = peek_version(raw)
        if version is not None and version != self._version:
            return Reject(Reason.VERSION_MISMATCH, f"version {version}, agreed on {self._version}")
        decoded = self._decode(raw)
        if isinstance(decoded, Reject):
            return decoded
""",
        """\
        decoded = self._decode(raw)
        if isinstance(decoded, Reject):
            return decoded
        version = peek_version(raw)
        if version is not None and version != self._version:
            return Reject(Reason.VERSION_MISMATCH, f"version {version}, agreed on {self._version}")
""",
        (f"{TEST_ENVELOPE}::test_the_version_is_judged_before_anything_else_is_decoded",),
    ),
    Mutant(
        "role_not_checked",
        "Every role may send every message that some role may send.",
        ENVELOPE,
        "if self._role not in row[1]:",
        "if not row[1]:",
        (f"{TEST_ENVELOPE}::test_each_role_may_send_what_is_on_its_list_and_nothing_else[42-3]",),
    ),
    Mutant(
        "true_is_an_integer",
        "A boolean passes where an integer is meant.",
        ENVELOPE,
        "if type(decoded[index]) is not kind:",
        "if not isinstance(decoded[index], kind):",
        (f"{TEST_ENVELOPE}::test_a_version_that_is_no_integer_is_malformed",),
    ),
    Mutant(
        "envelope_without_end",
        "An announced length is believed whatever it is, and its bytes are kept.",
        CHANNEL,
        "if length > self._bounds.envelope_bytes_max:",
        "if length > 2**31:",
        (f"{TEST_CHANNEL}::test_an_envelope_larger_than_allowed_is_refused_by_its_length_and_fatal",),
    ),
    Mutant(
        "handshake_without_end",
        "A handshake message may be as long as its length field allows.",
        CHANNEL,
        "if length > _HANDSHAKE_BYTES_MAX:",
        "if length > 65_535:",
        (f"{TEST_CHANNEL}::test_an_endless_handshake_message_is_refused_by_its_length",),
    ),
    Mutant(
        "link_without_proof",
        "A link exists after the handshake: a recording opens one.",
        CHANNEL,
        """\
        self._open(handshake, peer, self._opening.identity)
        self._state = _State.AWAIT_PROOF
""",
        """\
        self._open(handshake, peer, self._opening.identity)
        self._state = _State.OPEN
        events.append(peer)
""",
        (f"{TEST_CHANNEL}::test_too_many_refused_messages_end_the_link",),
    ),
    Mutant(
        "first_message_remembered_unauthenticated",
        "The memory of first messages is written before they authenticated.",
        CHANNEL,
        """\
        try:
            handshake.read_first(message)
        except NoiseError as error:
            self._fail(events, Reason.HANDSHAKE_AUTH_FAILED, str(error))
            return False
        seen = self._first_seen(message[:32])
        if seen is not None:
            self._fail(events, seen.reason, seen.detail)
            return False
""",
        """\
        seen = self._first_seen(message[:32])
        if seen is not None:
            self._fail(events, seen.reason, seen.detail)
            return False
        try:
            handshake.read_first(message)
        except NoiseError as error:
            self._fail(events, Reason.HANDSHAKE_AUTH_FAILED, str(error))
            return False
""",
        (f"{TEST_CHANNEL}::test_the_memory_of_first_messages_is_asked_only_after_authentication",),
    ),
    Mutant(
        "first_message_replayed",
        "A recorded first message is answered again.",
        ADMISSION,
        "if ephemeral in self._seen:",
        "if self._seen.get(ephemeral) == now_ms:",
        (f"{TEST_ADMISSION}::test_a_clock_that_steps_back_forgets_nothing",),
    ),
    Mutant(
        "guard_that_evicts",
        "A full memory of first messages forgets the oldest to make room.",
        ADMISSION,
        """\
            return Reject(Reason.HANDSHAKE_LIMIT, "the memory of first messages is full")
""",
        """\
            self._seen.popitem(last=False)
""",
        (f"{TEST_ADMISSION}::test_a_full_memory_refuses_and_never_evicts_what_still_counts",),
    ),
    Mutant(
        "another_proxy_believed",
        "A node takes any proxy for the one it dialled.",
        CHANNEL,
        "if peer != self._expected_peer:",
        "if not peer:",
        (f"{TEST_CHANNEL}::test_another_proxy_than_the_expected_one_is_refused",),
    ),
    Mutant(
        "older_version_by_choice_of_the_peer",
        "The peer chooses a version below our own floor.",
        CHANNEL,
        "common = version >= max(self._wire_min, self._opening.wire_min)",
        "common = version >= self._opening.wire_min",
        (f"{TEST_CHANNEL}::test_no_common_version_is_told_encrypted_and_known_on_both_sides",),
    ),
    Mutant(
        "preamble_not_bound",
        "What is said in the clear before the handshake is not part of it.",
        NOISE,
        """\
        self._mix_hash(prologue)
""",
        """\
        self._mix_hash(b"")
""",
        (f"{TEST_CHANNEL}::test_every_byte_of_the_preamble_is_bound",),
    ),
    Mutant(
        "truncation_is_a_close",
        "A connection that was cut off counts as closed by intention.",
        CHANNEL,
        'return Reject(Reason.LINK_TRUNCATED, "the connection ended without an authenticated close")',
        "return None",
        (f"{TEST_CHANNEL}::test_the_end_within_a_frame_or_within_an_envelope_is_a_truncation",),
    ),
    Mutant(
        "refusals_without_end",
        "A link may have any number of messages refused and goes on.",
        CHANNEL,
        "if self._rejects > REJECTS_MAX:",
        "if self._rejects > 2**31:",
        (f"{TEST_CHANNEL}::test_too_many_refused_messages_end_the_link",),
    ),
    Mutant(
        "key_not_per_identity",
        "All nodes have one key, so a stolen one speaks as every other.",
        KEYS,
        'data = epoch.to_bytes(8, "big") + identity.encode()',
        'data = epoch.to_bytes(8, "big")',
        (f"{TEST_KEYS}::test_no_two_keys_are_the_same",),
    ),
    Mutant(
        "key_not_per_role",
        "A node's key opens a client link.",
        KEYS,
        "person=_PERSON[role]",
        "person=_PERSON[Role.NODE]",
        (f"{TEST_KEYS}::test_the_proxy_never_dials_so_it_has_no_key_of_its_own",),
    ),
    Mutant(
        "key_not_per_epoch",
        "A revoked key goes on opening links.",
        KEYS,
        'data = epoch.to_bytes(8, "big") + identity.encode()',
        "data = identity.encode()",
        (f"{TEST_KEYS}::test_no_two_keys_are_the_same",),
    ),
    Mutant(
        "previous_secret_for_ever",
        "The previous secret is accepted after its expiry.",
        ADMISSION,
        "if now_ms >= self.previous_expires_at_ms:",
        "if now_ms < 0:",
        (f"{TEST_ADMISSION}::test_expiry_wins_over_the_previous_key",),
    ),
    Mutant(
        "previous_secret_never",
        "The previous secret is not accepted during the overlap: a rotation breaks every link.",
        ADMISSION,
        "if self.previous is not None:",
        "if self.previous is not None and now_ms < 0:",
        (f"{TEST_ADMISSION}::test_expiry_wins_over_the_previous_key",),
    ),
    Mutant(
        "unlisted_nodes_admitted",
        "Whoever can derive a key is a node, listed or not.",
        ADMISSION,
        "if not self.listed(claim.role, claim.identity):",
        "if claim.role is Role.CLIENT and not self.listed(claim.role, claim.identity):",
        (f"{TEST_ADMISSION}::test_a_client_and_a_node_of_one_name_are_two_identities",),
    ),
    Mutant(
        "address_takes_all_slots",
        "One address may hold every handshake slot.",
        ADMISSION,
        "if mine >= self._per_address_max:",
        "if mine >= self._concurrent_max:",
        (f"{TEST_ADMISSION}::test_so_many_handshakes_at_once_and_a_share_per_address",),
    ),
    Mutant(
        "grant_by_beginning",
        "A grant for `a` is one for everything that begins with `a`.",
        ADMISSION,
        """\
    return pattern == identity
""",
        """\
    return identity.startswith(pattern)
""",
        (f"{TEST_ADMISSION}::test_the_grant_that_names_most_of_an_identity_counts",),
    ),
    Mutant(
        "replay_memory_shorter_than_validity",
        "A configuration is accepted whose replay memory is shorter than a message lives.",
        CONFIG_MODEL,
        "if self.control_replay_window_millis < needed:",
        "if self.control_replay_window_millis < 0:",
        (
            f"{TEST_PROXY_CONFIG}::test_contradictions_and_malformed_values[change46-messaging.control_replay_window_millis-at least ttl + 2 x skew = 250000]",
        ),
    ),
    Mutant(
        "heard_before_hello",
        "A link that did not introduce itself is listened to.",
        LINK,
        "if not self.introduced and not isinstance(message, m.Hello):",
        "if not self.introduced and isinstance(message, m.Welcome):",
        (f"{TEST_HOSTILE_NODE}::test_nothing_is_heard_before_hello_and_hello_only_once",),
    ),
    Mutant(
        "twin_displaces_the_living",
        "A second copy of a node takes over the link of the one that lives.",
        CONTROL,
        "if older.incarnation != hello.incarnation and record.state(",
        "if not hello.incarnation and record.state(",
        (f"{TEST_HOSTILE_NODE}::test_a_second_incarnation_that_floods_is_let_go_and_the_proxy_goes_on",),
    ),
    Mutant(
        "revocation_without_effect_on_the_link",
        "A revoked node keeps the link it has.",
        CONTROL,
        """\
        self.observer.log.warning("identity_revoked", node=node_id, epoch=epoch, by=by)
        if link is not None:
            link.end(""",
        """\
        self.observer.log.warning("identity_revoked", node=node_id, epoch=epoch, by=by)
        if link is None:
            link.end(""",
        (f"{TEST_HOSTILE_NODE}::test_revoking_ends_the_link_and_the_key",),
    ),
    Mutant(
        "weak_secrets",
        "A secret of sixteen bytes is enough.",
        SECRET,
        "if len(decoded) < SECRET_BYTES_MIN:",
        "if len(decoded) < 16:",
        (f"{TEST_SECRET}::test_weak_and_unreadable_secrets_are_refused_with_the_reason",),
    ),
    Mutant(
        "typed_secrets",
        "A secret that somebody typed by hand is taken for a random one.",
        SECRET,
        "return weakness(text.encode()) or weakness(decoded) or decoded",
        "return decoded",
        (f"{TEST_SECRET}::test_weak_and_unreadable_secrets_are_refused_with_the_reason",),
    ),
)
