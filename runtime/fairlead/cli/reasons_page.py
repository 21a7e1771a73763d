"""docs/reasons.md, generated from the one table: `fairlead check reason-codes --markdown > docs/reasons.md`."""

from __future__ import annotations

from fairlead.protocol.reasons import TRAITS, Family


def markdown() -> str:
    """The page. A test compares it with the file."""
    parts = [
        "# Reasons\n\nEvery refusal and every failure has one of these. Generated from"
        " `protocol/fairlead/protocol/reasons.py` by `fairlead check reason-codes --markdown`."
        " HTTP is the status where the reason answers a request; how a run ended (family run) is told by its own"
        " status in a 200.\n"
    ]
    for family in Family:
        parts.append(
            f"\n## {family.value}\n\n| reason | HTTP | what | again? | next step |\n| --- | --- | --- | --- | --- |\n"
        )
        for reason, row in TRAITS.items():
            if row.family is family:
                again = {"retryable": "yes", "blocked": "no", "unknown": "look first"}[row.response.value]
                parts.append(f"| `{reason.value}` | {row.status} | {row.title} | {again} | {row.action} |\n")
    return "".join(parts)
