"""What proves a row of the drill, and what does not; and that what it submits harms nobody."""

from __future__ import annotations

from fairlead.cli.drill.plan import HTTP_ROWS, ROWS, TWIN, Row, Seen, harmless, judge, judge_all


def test_a_refusal_counts_only_with_its_own_status_and_reason() -> None:
    row = next(each for each in HTTP_ROWS if each.name == "nonce-replay")
    (status,), (reason,) = row.statuses, row.reasons
    assert judge(row, Seen(status=status, reason=reason)).passed
    for seen in (
        Seen(status=200), Seen(status=status, reason="STORE_UNAVAILABLE"), Seen(status=503, reason=reason), None,
        Seen(status=status, reason=reason, wrong="something else"),
    ):  # fmt: skip
        judged = judge(row, seen)
        assert not judged.passed
        assert judged.problem


def test_what_is_right_must_not_be_refused() -> None:
    row = Row("good", "is answered", (200, 202))
    assert judge(row, Seen(status=202)).passed
    assert not judge(row, Seen(status=401, reason="UNAUTHENTICATED")).passed
    assert not judge(Row("link", "is linked"), Seen(TWIN, reason="VERSION_MISMATCH", detail="1..1")).passed


def test_every_row_is_judged_and_what_was_not_seen_is_not_passed() -> None:
    judged = judge_all({})
    assert [each.row.name for each in judged] == [row.name for row in ROWS]
    assert not any(each.passed for each in judged)
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_only_a_command_that_anybody_may_have_executed_is_submitted() -> None:
    text = {"name": "text", "type": "string", "required": True, "choices": None}
    command = {
        "name": "a:b",
        "permission": "",
        "flags": 0,
        "effect": "idempotent",
        "runs_on": "node",
        "nodes": ["x"],
        "parameters": [text],
    }
    assert harmless([command]) == ("a:b", {"text": "drill"})
    for unfit in (
        {"permission": "kick.players"}, {"flags": 4}, {"effect": "transactional"}, {"runs_on": "proxy"}, {"nodes": []},
        {"parameters": [{**text, "choices": ["one"]}]}, {"parameters": [{**text, "type": "moment"}]},
    ):  # fmt: skip
        assert harmless([{**command, **unfit}]) is None
    optional = {**text, "required": False, "type": "moment"}
    assert harmless([{**command, "parameters": [optional]}]) == ("a:b", {})
