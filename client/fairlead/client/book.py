"""Pure. What an application has under way: every submission from its first word to its end, over however many links.

The one rule that makes a broken link harmless stands here: what was sent and never answered is sent again, under the
same run id, so that a proxy that had accepted it finds it; what was accepted is watched again. Invariants: an entry is
in `entries` until its end or refusal is known; nothing that was said twice changes anything.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar

import msgspec

from fairlead.protocol import messages as m
from fairlead.protocol.reasons import Reason, Refused, ResponseClass, parse_reason, traits

SUBMISSION_OVERHEAD_BYTES: Final = 96  # of one submission in a message, beside its texts and arguments
UNSURE_MAX: Final = 20  # times a second's pause: then the application hears that nobody can say
RUN_IDS_MAX: Final = 512  # in one message: they fit the smallest payload that a fleet may be configured with
UNKNOWN: Final = "UNKNOWN"  # the status of a run that the fleet does not know any more


class Submit(msgspec.Struct, frozen=True):
    """One item of `Client.submit_many`."""

    command: str
    args: Mapping[str, Any] = {}
    target: str = "any"
    ordering_key: str = ""
    priority: int = 5
    deadline_ms: int = 0
    delay_ms: int = 0
    callback_url: str = ""


class Stage(enum.IntEnum):
    """How far a submission has come."""

    QUEUED = 0  # not sent, or to be sent again
    SENT = 1
    ACCEPTED = 2  # durably, at the proxy
    OVER = 3  # its end is known, or it was refused


# Looked up once and not at every step: this is the fast path.
QUEUED, SENT, ACCEPTED, OVER = Stage.QUEUED, Stage.SENT, Stage.ACCEPTED, Stage.OVER


class Entry:
    """One submission. `end` or `refused` is set once it is over."""

    __slots__ = (
        "cancel_asked",
        "end",
        "refused",
        "run_id",
        "size",
        "stage",
        "submission",
        "unsure",
        "was_sent",
    )

    def __init__(self, submission: m.Submission) -> None:
        self.run_id = submission.run_id
        self.submission: m.Submission | None = submission  # given up once it is accepted
        self.size = (
            SUBMISSION_OVERHEAD_BYTES + len(submission.args_json) + len(submission.command)
            + 4 * (len(submission.target) + len(submission.ordering_key) + len(submission.callback_url))
        )  # fmt: skip
        self.stage = QUEUED
        self.cancel_asked = False
        self.was_sent = False
        self.unsure = 0  # how often the proxy could not say whether it had accepted it
        self.end: m.RunEnd | None = None
        self.refused: Refused | None = None


E = TypeVar("E", bound=Entry)


class Book(Generic[E]):
    """All entries, and what follows for them from what was sent, said and lost."""

    def __init__(self, open_max: int) -> None:
        self.open_max = open_max
        self.entries: dict[str, E] = {}
        self.queued: deque[E] = deque()
        self.unsure: list[E] = []  # to be said again after a pause

    # -- what the application does

    def add(self, entry: E) -> None:
        self.entries[entry.run_id] = entry
        self.queued.append(entry)

    def withdraw(self, entry: E) -> bool:
        """Take back what was never sent. False: it was, so only its answer tells what became of it."""
        if entry.was_sent or entry.stage is not QUEUED or entry.run_id not in self.entries:
            return False
        del self.entries[entry.run_id]
        entry.stage = OVER  # `take` leaves it out
        return True

    # -- what goes out

    def take(self, bytes_max: int) -> tuple[m.Submission, ...]:
        """What to send next: as much of the queue as fits one message, and always something if there is any."""
        taken: list[m.Submission] = []
        queued, total = self.queued, 0
        while queued:
            entry = queued[0]
            if entry.stage is QUEUED:
                total += entry.size
                if total > bytes_max and taken:
                    break
                assert entry.submission is not None
                taken.append(entry.submission)
                entry.stage, entry.was_sent = SENT, True
            queued.popleft()
        return tuple(taken)

    def lost(self) -> None:
        """The link is gone: what was sent and not answered goes again, before what was never sent."""
        again = [entry for entry in self.entries.values() if entry.stage is SENT]
        for entry in again:
            entry.stage = QUEUED
        self.queued.extendleft(reversed(again))

    def say_again(self) -> bool:
        """The pause is over: what a proxy was unsure of goes again, under the same run id. Whether there is any."""
        again = [entry for entry in self.unsure if entry.stage is QUEUED]
        self.unsure.clear()
        self.queued.extendleft(reversed(again))
        return bool(again)

    def resume(self) -> list[m.Message]:
        """What to say first on a new link, before the queue."""
        accepted = [entry for entry in self.entries.values() if entry.stage is ACCEPTED]
        messages: list[m.Message] = [m.Watch(ids) for ids in id_parts([each.run_id for each in accepted])]
        cancelled = [each.run_id for each in accepted if each.cancel_asked]
        return [*messages, *(m.CancelRuns(ids) for ids in id_parts(cancelled))]

    # -- what the proxy says

    def submitted(
        self, outcomes: Iterable[m.SubmitOutcome], *, elsewhere: bool
    ) -> tuple[list[E], list[str], int]:
        """The entries that were answered; runs to watch again, and after how many milliseconds (for `unsure` too).

        `elsewhere`: there are other proxies, so a proxy that is draining is no answer.
        """
        answered: list[E] = []
        watch: list[str] = []
        pause_ms = 0
        for outcome in outcomes:
            entry = self.entries.get(outcome.run_id)
            if entry is None:
                continue
            if not outcome.reason:
                if entry.stage is not ACCEPTED:
                    entry.stage, entry.submission = ACCEPTED, None
                    answered.append(entry)
                continue
            reason = parse_reason(outcome.reason)
            if entry.stage is ACCEPTED:  # an answer to WATCH
                if traits(reason).response is ResponseClass.RETRYABLE:
                    watch.append(entry.run_id)
                    pause_ms = max(pause_ms, outcome.retry_after_ms)
                else:
                    self._over(entry, m.RunEnd(entry.run_id, UNKNOWN, b"", outcome.reason, outcome.detail))
                    answered.append(entry)
            elif reason is Reason.DISPATCH_DRAINING and elsewhere:
                continue  # stays SENT, so it is sent again on the next link
            elif reason is Reason.STORE_UNAVAILABLE and entry.unsure < UNSURE_MAX:
                # It may have been accepted: only saying it again tells, and cannot make a second run.
                entry.unsure, entry.stage = entry.unsure + 1, QUEUED
                self.unsure.append(entry)
                pause_ms = max(pause_ms, outcome.retry_after_ms)
            else:
                entry.refused = Refused(reason, outcome.detail, (outcome.retry_after_ms or 0) / 1000 or None)
                entry.stage, entry.submission = OVER, None
                del self.entries[entry.run_id]
                answered.append(entry)
        return answered, watch, pause_ms

    def ended(self, ends: Iterable[m.RunEnd]) -> list[E]:
        """The entries that are over now. An end counts as the acceptance too, if that was not heard."""
        over: list[E] = []
        for end in ends:
            entry = self.entries.get(end.run_id)
            if entry is not None:
                self._over(entry, end)
                over.append(entry)
        return over

    def _over(self, entry: E, end: m.RunEnd) -> None:
        entry.end, entry.submission, entry.stage = end, None, OVER
        del self.entries[entry.run_id]

    def cancel(self, entry: E) -> bool:
        """Ask for its cancellation. Whether there is something to say about it on the present link."""
        if entry.stage is OVER:
            return False
        entry.cancel_asked = True
        return True


def id_parts(run_ids: Sequence[str]) -> list[tuple[str, ...]]:
    """Ids in groups that fit a message each."""
    return [tuple(run_ids[start : start + RUN_IDS_MAX]) for start in range(0, len(run_ids), RUN_IDS_MAX)]


def encode(run_id: str, asked: Submit, args_bytes_max: int, *, quiet: bool = False) -> m.Submission:
    """The submission as it goes over the wire; `quiet`: nobody waits for its acceptance. Raises Refused where its
    arguments cannot go."""
    try:
        args_json = msgspec.json.encode(asked.args)
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise Refused(Reason.ARGUMENTS_INVALID, f"JSON cannot carry them: {error}") from error
    if len(args_json) > args_bytes_max:
        raise Refused(Reason.BODY_TOO_LARGE, f"args have {len(args_json)} bytes, at most {args_bytes_max}")
    return m.Submission(
        run_id, asked.command, args_json, asked.target, asked.deadline_ms, asked.ordering_key, asked.priority,
        asked.delay_ms, asked.callback_url, quiet,
    )  # fmt: skip
