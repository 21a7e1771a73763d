"""The edges: signatures, callbacks, addresses, operators, what strangers send."""

from __future__ import annotations

from typing import Final

from tests.sim.mutation import Mutant

SIGNING: Final = "runtime/fairlead/runtime/signing.py"
CALLBACKS: Final = "proxy/fairlead/proxy/dispatch/callbacks.py"
CALLBACKS_API: Final = "proxy/fairlead/proxy/ops/callbacks_api.py"
CALLBACK_LADDER: Final = "proxy/fairlead/proxy/dispatch/callback_ladder.py"
OUTBOUND: Final = "runtime/fairlead/runtime/outbound.py"
ADDRESSES: Final = "runtime/fairlead/runtime/addresses.py"
ADMISSION: Final = "proxy/fairlead/proxy/edge/admission.py"
FORWARD_HEADERS: Final = "proxy/fairlead/proxy/edge/forward_headers.py"
ACCESS: Final = "proxy/fairlead/proxy/guard/access.py"
OPERATOR_KEYS: Final = "proxy/fairlead/proxy/guard/operator_keys.py"
OBSERVER: Final = "runtime/fairlead/runtime/observer.py"
SIBLINGS: Final = "proxy/fairlead/proxy/siblings.py"
HEALTH: Final = "proxy/fairlead/proxy/ops/health.py"
CONFIG: Final = "proxy/fairlead/proxy/config.py"

TEST_SIGNING: Final = "tests/unit/runtime/test_signing.py"
TEST_CALLBACKS: Final = "tests/shell/test_callbacks.py"
TEST_CALLBACKS_API: Final = "tests/shell/test_callbacks_api.py"
TEST_CALLBACK_LADDER: Final = "tests/unit/proxy/test_callback_ladder.py"
TEST_OUTBOUND: Final = "tests/shell/test_outbound.py"
TEST_ADDRESSES: Final = "tests/unit/runtime/test_addresses.py"
TEST_EDGE_ADMISSION: Final = "tests/unit/proxy/edge/test_edge_admission.py"
TEST_EDGE_FORWARD_HEADERS: Final = "tests/unit/proxy/edge/test_edge_forward_headers.py"
TEST_ACCESS: Final = "tests/unit/proxy/guard/test_access.py"
TEST_OPERATOR_KEYS: Final = "tests/unit/proxy/guard/test_operator_keys.py"
TEST_OBSERVER: Final = "tests/unit/runtime/test_observer.py"
TEST_DISPATCH_TURNS: Final = "tests/unit/proxy/test_dispatch_turns.py"
TEST_HEALTH: Final = "tests/unit/proxy/test_health.py"
TEST_PROXY_CONFIG: Final = "tests/unit/proxy/test_proxy_config.py"

MUTANTS: Final = (
    Mutant(
        "signature_over_a_part",
        "Only the beginning of a body is signed.",
        SIGNING,
        'b"%d.%b" % (timestamp_s, body)',
        'b"%d.%b" % (timestamp_s, body[:64])',
        (f"{TEST_SIGNING}::test_every_byte_of_a_long_body_is_signed",),
    ),
    Mutant(
        "signature_without_the_time",
        "A signature is not of its timestamp, so it never gets old.",
        SIGNING,
        'b"%d.%b" % (timestamp_s, body)',
        'b"%b" % body',
        (f"{TEST_SIGNING}::test_forgeries",),
    ),
    Mutant(
        "tolerance_ignored",
        "A signature of any age is believed.",
        SIGNING,
        "if abs(late_s) > tolerance_s:",
        "if tolerance_s < 0:",
        (f"{TEST_SIGNING}::test_the_tolerance_has_two_ends",),
    ),
    Mutant(
        "future_believed",
        "A signature from the future is believed.",
        SIGNING,
        "if abs(late_s) > tolerance_s:",
        "if late_s > tolerance_s:",
        (f"{TEST_SIGNING}::test_the_tolerance_has_two_ends",),
    ),
    Mutant(
        "previous_signing_secret_forgotten",
        "During a rotation what the previous secret signed is refused.",
        SIGNING,
        "for secret in secrets:  # every one is compared, whichever fits",
        "for secret in secrets[:1]:",
        (f"{TEST_SIGNING}::test_what_the_current_or_the_previous_secret_signed_is_believed",),
    ),
    Mutant(
        "webhook_signature_of_one_secret",
        "During a rotation receivers with the previous secret cannot verify.",
        SIGNING,
        """\
for secret in secrets)
    return""",
        """\
for secret in secrets[:1])
    return""",
        (f"{TEST_SIGNING}::test_headers_say_what_both_specifications_say",),
    ),
    Mutant(
        "unsigned_believed",
        "Without a configured secret every result is believed.",
        SIGNING,
        """\
        return Reject(
            Reason.CALLBACK_SIGNATURE_INVALID, "worker.callback_signing_secret is not set: none is taken"
        )
""",
        """\
        return now_ms
""",
        (f"{TEST_SIGNING}::test_without_a_secret_nothing_is_believed",),
    ),
    Mutant(
        "sent_unsigned",
        "Without a configured secret callbacks go out unsigned.",
        CALLBACKS,
        """\
        if not self._settings.secrets:
            why = """,
        """\
        if not self._settings.secrets and not due.url:
            why = """,
        (f"{TEST_CALLBACKS}::test_without_a_secret_nothing_leaves",),
    ),
    Mutant(
        "result_of_another_path",
        "A signed result for one run is taken as another's.",
        CALLBACKS_API,
        "if told.runId != run_id:",
        "if not told.runId:",
        (f"{TEST_CALLBACKS_API}::test_a_body_that_is_no_result_is_refused_and_leaves_no_receipt",),
    ),
    Mutant(
        "receipt_takes_the_result",
        "An event whose receipt was written before a crash is never settled.",
        CALLBACKS_API,
        """\
            verdict = await self._settling.settle_outside(report, request.correlation_id)
""",
        """\
            verdict = Verdict.ALREADY
            if receipt == "new":
                verdict = await self._settling.settle_outside(report, request.correlation_id)
""",
        (f"{TEST_CALLBACKS_API}::test_what_was_never_taken_is_not_taken_by_saying_it_twice",),
    ),
    Mutant(
        "redirect_is_delivered",
        "A redirect counts as delivered.",
        CALLBACK_LADDER,
        "if 200 <= outcome.status <= 299:",
        "if 200 <= outcome.status <= 399:",
        (f"{TEST_CALLBACK_LADDER}::test_a_redirect_says_that_it_is_not_followed",),
    ),
    Mutant(
        "retry_after_brings_nearer",
        "A receiver makes us call again at once.",
        CALLBACK_LADDER,
        "delay_s = min(max(delay_s, asked_s), furthest_s)",
        "delay_s = min(asked_s, furthest_s)",
        (f"{TEST_CALLBACK_LADDER}::test_retry_after_moves_within_one_rung",),
    ),
    Mutant(
        "loopback_dialled",
        "A name that resolves to a loopback address is dialled.",
        OUTBOUND,
        "permitted = [address for address, why in judged.items() if not why]",
        "permitted = list(judged)",
        (f"{TEST_OUTBOUND}::test_a_name_that_changes_its_mind_gains_nothing",),
    ),
    Mutant(
        "redirect_followed",
        "A receiver sends our request somewhere else.",
        OUTBOUND,
        """\
            return Answer(response.status, named, *await _read_body(response))
""",
        """\
            further = read_url(dict(named).get("location", ""))
            if 300 <= response.status <= 399 and not isinstance(further, str):
                return await self._exchange(further, headers, body)
            return Answer(response.status, named, *await _read_body(response))
""",
        (f"{TEST_OUTBOUND}::test_redirects_are_not_followed",),
    ),
    Mutant(
        "loopback_is_public",
        "A loopback address is no reason to refuse a URL.",
        ADDRESSES,
        """\
        ("127.0.0.0/8", "a loopback address"),
""",
        "",
        (f"{TEST_ADDRESSES}::test_when_dialling_the_allowed_host_may_be_inside_but_not_nowhere",),
    ),
    Mutant(
        "address_within_an_address",
        "An IPv4 address inside a NAT64 address is not looked at.",
        ADDRESSES,
        "if address in _MAPPED or address in _NAT64:",
        "if address in _MAPPED:",
        (f"{TEST_ADDRESSES}::test_public_addresses_just_beside_are_not_refused",),
    ),
    Mutant(
        "answer_without_end",
        "A receiver's answer is read as long as it goes on.",
        OUTBOUND,
        """\
        self._left -= len(data)
""",
        """\
        self._left -= 0
""",
        (f"{TEST_OUTBOUND}::test_a_huge_answer_is_read_to_its_limit_and_no_further",),
    ),
    Mutant(
        "table_of_addresses_evicts",
        "A full table of addresses forgets a live one to make room.",
        ADMISSION,
        """\
            return f"{self._table_max} addresses are being counted"
""",
        """\
            del self._windows[next(iter(self._windows))]
""",
        (f"{TEST_EDGE_ADMISSION}::test_a_full_table_refuses_new_addresses_and_forgets_only_what_expired",),
    ),
    Mutant(
        "every_address_of_a_network_counts_alone",
        "Every address of an IPv6 network counts for itself.",
        ADMISSION,
        'return str(address) if address.version == 4 else f"{address.packed[:8].hex()}/64"',
        "return str(address)",
        (f"{TEST_EDGE_ADMISSION}::test_what_counts_as_one_client",),
    ),
    Mutant(
        "denied_may_connect",
        "The deny list is not asked.",
        ADMISSION,
        "if address in self._deny:",
        "if address in self._uncounted:",
        (f"{TEST_EDGE_ADMISSION}::test_lists_say_who_may_come_and_who_is_not_counted",),
    ),
    Mutant(
        "joins_have_no_grace",
        "After a restart all clients come back at once, and are refused.",
        ADMISSION,
        "if not per_s or now - self._started_at < self.limits.joins_grace_s:",
        "if not per_s:",
        (f"{TEST_EDGE_ADMISSION}::test_everybody_together_is_limited_only_after_the_grace_of_a_start",),
    ),
    Mutant(
        "forwarded_by_anybody",
        "A client says by itself whom it forwards for.",
        FORWARD_HEADERS,
        "    if trusted:\n        forwarded = _forwarded(",
        "    if _told(head):\n        forwarded = _forwarded(",
        (f"{TEST_EDGE_FORWARD_HEADERS}::test_the_clients_own_word_on_who_it_is_counts_only_if_trusted",),
    ),
    Mutant(
        "operator_key_optional",
        "Whoever sends no key is an operator.",
        ACCESS,
        """\
            return _opened("viewer")
        return NOBODY
""",
        """\
            return _opened("viewer")
        return _opened("operator")
""",
        (f"{TEST_ACCESS}::test_what_is_opened_to_somebody_without_credentials",),
    ),
    Mutant(
        "operator_key_by_its_beginning",
        "A key that begins like an operator's is one.",
        OPERATOR_KEYS,
        "if hmac.compare_digest(known, wanted):",
        "if hmac.compare_digest(known[:1], wanted[:1]):",
        (f"{TEST_OPERATOR_KEYS}::test_a_key_counts_whole",),
    ),
    Mutant(
        "revoked_key_goes_on",
        "A revoked operator key is still a key.",
        OPERATOR_KEYS,
        "if row.revoked_at_ms:",
        "if row.revoked_at_ms and row.expires_at_ms:",
        (f"{TEST_OPERATOR_KEYS}::test_expiry_and_revocation",),
    ),
    Mutant(
        "permission_wildcard_without_its_dot",
        "`kick.*` includes `kickstart`.",
        ACCESS,
        "permission.startswith(granted[:-1])",
        "permission.startswith(granted[:-2])",
        (f"{TEST_ACCESS}::test_a_wildcard_needs_its_dot",),
    ),
    Mutant(
        "scope_widens_a_role",
        "A viewer whose key names a scope of an operator has it.",
        ACCESS,
        "    if scope not in allowed(caller.roles):\n",
        "    if not caller.scopes and scope not in allowed(caller.roles):\n",
        (f"{TEST_ACCESS}::test_a_scope_narrows_a_role_and_never_widens_it",),
    ),
    Mutant(
        "refusals_not_counted",
        "A refusal is logged and not counted.",
        OBSERVER,
        """\
        self._rejects[row.family].cell(reason.value).inc()
""",
        """\
        self._rejects[row.family].cell(reason.value)
""",
        (f"{TEST_OBSERVER}::test_a_refusal_is_counted_logged_and_remembered_at_once",),
    ),
    Mutant(
        "senseless_hint_ends_the_loop",
        "A hint that makes no sense ends the loop that follows hints.",
        SIBLINGS,
        "if not (fence.isdecimal() and len(fence) < 19):",
        "if not fence:",
        (
            f"{TEST_DISPATCH_TURNS}::test_a_hint_that_makes_no_sense_is_refused_and_those_after_it_are_followed",
        ),
    ),
    Mutant(
        "plain_hash_for_a_signature",
        "A signature is a hash that anybody can compute.",
        SIGNING,
        'hmac.new(secret, b"%d.%b" % (timestamp_s, body), hashlib.sha256).hexdigest()',
        'hashlib.sha256(b"%d.%b" % (timestamp_s, body)).hexdigest()',
        (f"{TEST_SIGNING}::test_forgeries",),
    ),
    Mutant(
        "healthy_while_the_store_fails",
        "A proxy whose store fails says that it is ready, because its listener is.",
        HEALTH,
        "if found.state is CheckState.FAIL or (found.state is CheckState.WARN and worst is CheckState.OK):",
        "if found.state is CheckState.WARN and worst is CheckState.OK:",
        (f"{TEST_HEALTH}::test_the_whole_is_as_well_as_its_worst_part_and_not_as_its_listener",),
    ),
    Mutant(
        "keyless_operators_from_anywhere",
        "A configuration is accepted that lets everybody operate the proxy from other machines.",
        CONFIG,
        'config.environment == "development" and observability.enabled and not is_loopback(observability.host)',
        'config.environment == "development" and not observability.enabled and not is_loopback(observability.host)',
        (
            f"{TEST_PROXY_CONFIG}::test_contradictions_and_malformed_values[change63-observability.host-lets everybody operate]",
        ),
    ),
)
