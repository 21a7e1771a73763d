"""Client traffic: repeating, reuse, ends, counts, sessions, limits, transfers."""

from __future__ import annotations

from typing import Final

from tests.sim.mutation import SIM, Mutant

EDGE: Final = "proxy/fairlead/proxy/edge/"
EXCHANGE: Final = f"{EDGE}exchange.py"
HTTP: Final = f"{EDGE}http.py"
POOL: Final = f"{EDGE}pool.py"
TCP: Final = f"{EDGE}tcp.py"
CONNECT: Final = f"{EDGE}connect.py"
LISTEN: Final = f"{EDGE}listen.py"
ADMISSION: Final = f"{EDGE}admission.py"
TRANSFERS: Final = f"{EDGE}transfers.py"
PLAYING: Final = f"{EDGE}minecraft/playing.py"
DESK: Final = "proxy/fairlead/proxy/transfer_desk.py"
RELAY: Final = "runtime/fairlead/runtime/relay.py"

TEST_UPSTREAMS: Final = "tests/shell/test_edge_upstreams.py"
TEST_HTTP: Final = "tests/shell/test_edge_http.py"
TEST_TCP: Final = "tests/shell/test_edge_tcp.py"
TEST_RELAY: Final = "tests/shell/test_relay_contract.py"
TEST_ADMISSION: Final = "tests/unit/proxy/edge/test_edge_admission.py"
TEST_TRANSFERS: Final = "tests/unit/proxy/edge/test_transfer_decisions.py"
TEST_DESK: Final = "tests/shell/test_transfers_in_memory.py"
TEST_CLIENTS: Final = "tests/sim/test_clients_in_seeds.py"

MUTANTS: Final = (
    Mutant(
        "unsafe_asked_again",
        "A POST whose backend gave its connection up is asked again.",
        EXCHANGE,
        "is_safe = gone.is_clean and not self._head.length and self._head.method in _IDEMPOTENT",
        "is_safe = gone.is_clean and not self._head.length",
        (f"{TEST_UPSTREAMS}::test_what_is_not_safe_is_asked_once", SIM),
    ),
    Mutant(
        "tries_without_bound",
        "A request is asked again as long as backends give it back.",
        EXCHANGE,
        "is_safe = is_safe and tries_left > 0 and",
        "is_safe = is_safe and",
        (f"{TEST_UPSTREAMS}::test_tries_are_bounded",),
    ),
    Mutant(
        "doubtful_connection_reused",
        "A backend that answered before it had the whole request is asked again on that connection.",
        EXCHANGE,
        "        if not self._is_sent or self._websocket:\n            return True",
        "        if self._websocket:\n            return True",
        (f"{TEST_CLIENTS}::test_a_connection_that_was_answered_too_early_serves_nobody_else", SIM),
    ),
    Mutant(
        "surplus_does_not_matter",
        "Bytes behind an answer are taken for the next one.",
        POOL,
        "if upstream.is_fit(now, self._limits.upstream_requests_max) and upstream.is_quiet():",
        "if upstream.is_fit(now, self._limits.upstream_requests_max):",
        (f"{TEST_HTTP}::test_an_idle_connection_that_the_backend_closed_is_not_reused", SIM),
    ),
    Mutant(
        "answer_to_head_has_a_body",
        "A refusal of a HEAD request has a body, which its client takes for the next answer.",
        HTTP,
        "        await self._send_answer(response, self.method)\n",
        '        await self._send_answer(response, b"GET")\n',
        (f"{TEST_HTTP}::test_a_refused_head_request_has_no_body_that_the_next_answer_would_begin_with", SIM),
    ),
    Mutant(
        "truncated_answer_ends_in_order",
        "An answer that its backend broke off ends like one that is whole.",
        HTTP,
        "            self.client.stream.abort()\n            self.phase = LINGER",
        "            self.client.stream.close()\n            self.phase = LINGER",
        (f"{TEST_HTTP}::test_a_backend_that_fails_in_mid_body_resets_the_client", SIM),
    ),
    Mutant(
        "only_one_backend_is_tried",
        "A backend that takes no connection is the last that is tried.",
        CONNECT,
        '                failures.append(f"{backend.id}: {connected.detail}")\n',
        '                failures.append(f"{backend.id}: {connected.detail}")\n                break\n',
        (
            f"{TEST_TCP}::test_the_next_candidate_is_tried_and_the_failed_one_marked",
            f"{TEST_CLIENTS}::test_servers_that_are_away_cost_no_safe_request",
        ),
    ),
    Mutant(
        "half_close_lost",
        "The end of one direction is not passed on.",
        RELAY,
        "                await target.send_eof()\n",
        "                await trio.lowlevel.checkpoint()\n",
        (f"{TEST_RELAY}::test_each_direction_ends_by_itself", SIM),
    ),
    Mutant(
        "reset_becomes_an_end",
        "A tcp session that was broken ends for the other side as if it were whole.",
        TCP,
        "                if ended is None:\n                    side.close()\n                else:\n                    side.abort()",
        "                side.close()",
        (f"{TEST_CLIENTS}::test_a_server_that_resets_a_session_resets_its_client", SIM),
    ),
    Mutant(
        "first_bytes_uncounted",
        "What a client had said before its backend stood is not counted.",
        RELAY,
        "            await self._send(backend, first)\n            self._count(True, len(first))\n",
        "            await self._send(backend, first)\n",
        (f"{TEST_RELAY}::test_what_was_read_already_goes_first_and_is_counted",),
    ),
    Mutant(
        "counted_for_the_other_direction",
        "Bytes to a client are counted as bytes from it.",
        RELAY,
        "        if is_up:\n            self._moved.bytes_in += count",
        "        if not is_up:\n            self._moved.bytes_in += count",
        (f"{TEST_RELAY}::test_bytes_go_both_ways_and_are_counted", SIM),
    ),
    Mutant(
        "session_never_closed",
        "A session is still listed when its client is gone.",
        LISTEN,
        "                self._gatekeeper.leave()\n                self._sessions.close(session)\n",
        "                self._gatekeeper.leave()\n",
        (f"{TEST_TCP}::test_bytes_are_relayed_with_half_close_and_counted", SIM),
    ),
    Mutant(
        "address_limit_counts_one_more",
        "One more connection than the limit is let in from an address.",
        ADMISSION,
        "        if count >= self._admitted_max:",
        "        if count > self._admitted_max:",
        (f"{TEST_ADMISSION}::test_a_window_fills_and_opens_again", SIM),
    ),
    Mutant(
        "place_kept_by_who_is_refused",
        "Who is refused by a rate takes a place for good.",
        ADMISSION,
        "        refused = self.judge(host, now)\n        if refused is None:\n            self.live += 1",
        "        refused = self.judge(host, now)\n        self.live += 1",
        (f"{TEST_ADMISSION}::test_who_is_refused_takes_no_place", SIM),
    ),
    Mutant(
        "transfer_never_reverted",
        "A session whose transfer failed stays TRANSFERRING.",
        DESK,
        "        if transfer.state is TransferState.FAILED:\n            self._sessions.stays(transfer.session, transfer.id)\n",
        "",
        (f"{TEST_DESK}::test_a_referral_that_is_rejected_leaves_the_session_where_it_was", SIM),
    ),
    Mutant(
        "transfer_without_end",
        "A transfer whose client does not come back goes on.",
        TRANSFERS,
        "if now_s >= each.deadline_s]",
        "if now_s >= each.deadline_s + 3_600]",
        (f"{TEST_TRANSFERS}::test_each_ends_at_its_deadline_and_says_where_it_stood", SIM),
    ),
    Mutant(
        "token_accepted_twice",
        "A token that is being used opens another session.",
        TRANSFERS,
        "if transfer is not None and transfer.state is not TransferState.ARRIVING:",
        "if transfer is not None:",
        (f"{TEST_TRANSFERS}::test_every_way_to_an_end", SIM),
    ),
    Mutant(
        "token_accepted_by_each_proxy",
        "A token is used up at one proxy, and good at another.",
        DESK,
        "        if self._store.shared:\n            await self._use_up",
        "        if not self._store.shared:\n            await self._use_up",
        (SIM,),
    ),
    Mutant(
        "counts_as_moved_wherever_it_is",
        "A player that was led elsewhere counts as transferred.",
        DESK,
        "if session.backend == transfer.to_backend:",
        "if session.backend:",
        (f"{TEST_DESK}::test_who_is_led_elsewhere_was_not_transferred", SIM),
    ),
)
