"""`fairlead check sdk-drift`: whether those who call over HTTP and over a link say what is understood there.

The operators' command line and every other caller in the tree are read for paths, methods, query, bodies and the fields
of answers that they use, and held to the OpenAPI document. The client library is held to it by the fields of a
submission, and to the kept description of its messages: one may be appended with a default, none may move or go, or an
application that is not upgraded yet would be misread.
"""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

import fairlead.cli.ctl
import fairlead.protocol.messages as m
from fairlead.cli import findings
from fairlead.cli.findings import ERROR, OK, WARNING, Found
from fairlead.cli.sdk_calls import Document, HttpCall, Read, read_source
from fairlead.client.book import Submit
from fairlead.client.client import Client
from fairlead.proxy.ops.openapi import document
from fairlead.runtime.process import EXIT_STOPPED
from fairlead.runtime.version import VERSION

MESSAGES: Final = "docs/client-messages.json"
# Names that the two doors give to the same thing, and what only one of them needs.
ONLY_OVER_HTTP: Final = {
    "tenant": "an application's is configured", "schedule_at": "delay_ms says the same",
    "idempotency_key": "a client's run id is its own choice",
}  # fmt: skip
ONLY_OVER_A_LINK: Final = {"run_id", "args_json", "quiet"}


def check_drift(options: argparse.Namespace) -> int:
    """`fairlead check sdk-drift`."""
    path = Path(options.messages)
    if options.write:
        path.write_text(json.dumps(described_messages(), indent=1) + "\n")
        print(f"{path}: written, {len(described_messages())} messages")
        return EXIT_STOPPED
    gate = findings.Gate("sdk-drift", options)
    try:
        made = json.loads(Path(options.file).read_text()) if options.file else document(VERSION)
        described = Document(made)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return gate.could_not_run(f"{options.file} is no OpenAPI document that can be read: {error!r}")
    found = [*over_http(described, sources()), *of_a_submission(made), *of_messages(path)]
    return gate.end(found, document=options.file or f"of the code, version {VERSION}")


# -- over HTTP


def sources() -> Iterator[tuple[str, str]]:
    """The command line's sources with their texts."""
    folder = Path(fairlead.cli.ctl.__file__).parents[1]
    for path in sorted(folder.rglob("*.py")):
        yield path.relative_to(folder).as_posix(), path.read_text()


def over_http(described: Document, texts: Iterable[tuple[str, str]]) -> Iterator[Found]:
    """Every call of some sources, by the document."""
    whole = Read()
    unread: list[str] = []
    for name, text in texts:
        read = read_source(name, text, described)
        whole.calls += read.calls
        whole.fields += read.fields
        whole.unknown += read.unknown
    wrong = [problem for each in whole.calls for problem in _problems(described, each, unread)]
    yield from (Found(ERROR, "calls", each) for each in wrong)
    yield from (Found(ERROR, "fields", each) for each in whole.unknown)
    yield from (Found(WARNING, "calls", f"{each}: its path is put together at run time") for each in unread)
    if not wrong and whole.calls:
        yield Found(OK, "calls", f"{len(whole.calls) - len(unread)} have their operation, query and body")
    if not whole.unknown and whole.fields:
        yield Found(OK, "fields", f"{whole.fields} that are read of answers are in their schemas")
    if not whole.calls or not whole.fields:
        yield Found(ERROR, "calls", "none were found: the sources are not where they are looked for")


def _problems(described: Document, asked: HttpCall, unread: list[str]) -> Iterator[str]:
    if not asked.paths:
        unread.append(asked.where)
        return
    for path in asked.paths:
        operations = described.operations(asked.method, path)
        if not operations:
            yield f"{asked.where} asks {asked.method} {path}, which does not exist"
            continue
        taken = {each["name"] for operation in operations for each in operation.get("parameters", ())}
        for name in asked.query:
            if name not in taken:
                yield f"{asked.where} asks {asked.method} {path} with ?{name}=, which it does not take"
        bodies = [
            fields for operation in operations if (fields := described.body_fields(operation)) is not None
        ]
        for name in asked.body:
            if bodies and not any(name in fields for fields in bodies):
                yield f"{asked.where} sends {asked.method} {path} a {name!r}, which it does not take"


# -- the client library


def of_a_submission(made: Mapping[str, Any]) -> Iterator[Found]:
    """The fields of a submission: over HTTP, over a link, and as the library's `submit` takes them."""
    properties = made["components"]["schemas"]["Submission"]["properties"]
    over_http = set(properties) - set(ONLY_OVER_HTTP) - {"args"}
    offered = {
        "a link's submission": set(m.Submission.__struct_fields__) - ONLY_OVER_A_LINK,
        "Client.submit": set(inspect.signature(Client.submit).parameters) - {"self", "args"},
        "client.Submit": set(Submit.__struct_fields__) - {"args"},
    }
    for what, names in offered.items():
        wrong = [f"lacks {name}" for name in sorted(over_http - names)]
        wrong += [f"takes {name}, which HTTP does not" for name in sorted(names - over_http)]
        yield Found(ERROR if wrong else OK, what, "; ".join(wrong) or f"{len(names)} fields")


def described_messages() -> dict[str, Any]:
    """What a client link says and hears, as it is kept: by number, the fields in their order."""
    found: dict[str, Any] = {}
    for number, (kind, roles) in sorted(m.CATALOGUE.items()):
        if number.name.startswith("CLIENT_") or number in _OF_CLIENTS:
            found[str(number.value)] = {
                "name": number.name, "sent_by": sorted(each.name for each in roles), "fields": _fields(kind),
            }  # fmt: skip
    for inner in (m.Submission, m.SubmitOutcome, m.RunEnd):
        found[inner.__name__] = {"fields": _fields(inner)}
    return found


_OF_CLIENTS: Final = frozenset({
    m.MessageType.NOTICE, m.MessageType.SUBMIT, m.MessageType.SUBMITTED, m.MessageType.RUNS_ENDED, m.MessageType.WATCH,
    m.MessageType.CANCEL_RUNS,
})  # fmt: skip


def _fields(kind: type[msgspec.Struct]) -> list[dict[str, Any]]:
    return [
        {"name": each.name, "type": _type_name(each.type), "required": each.required}
        for each in msgspec.structs.fields(kind)
    ]


def _type_name(kind: Any) -> str:
    """A type as one compares it: without the bounds of its values, which are judged where it is decoded."""
    inner = getattr(kind, "__origin__", None)
    arguments = getattr(kind, "__args__", ())
    if hasattr(kind, "__metadata__"):
        return _type_name(kind.__origin__)
    if inner is not None and arguments:
        inside = ", ".join("..." if each is ... else _type_name(each) for each in arguments)
        return f"{getattr(inner, '__name__', inner)}[{inside}]"
    return getattr(kind, "__name__", str(kind))


def of_messages(path: Path) -> Iterator[Found]:
    """The messages as they are kept, and as the code has them."""
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        yield Found(ERROR, str(path), f"cannot be read: {error}")
        return
    wrong = list(message_problems(kept, described_messages()))
    yield from (Found(ERROR, str(path), each) for each in wrong)
    if not wrong:
        yield Found(OK, str(path), f"{len(kept)} messages, none changed")


def message_problems(kept: Mapping[str, Any], made: Mapping[str, Any]) -> Iterator[str]:
    """What an application of the kept messages would misread, and what is only not written down yet."""
    for number in sorted({*kept, *made}):
        if number not in made:
            yield f"{number} {kept[number].get('name', '')} is gone: applications still send it"
            continue
        name = made[number].get("name", number)
        if number not in kept:
            yield f"{name} is new: run `fairlead check sdk-drift --write`"
            continue
        before, after = kept[number]["fields"], made[number]["fields"]
        if kept[number].get("name") != made[number].get("name"):
            yield f"{number} was {kept[number].get('name')} and is {name}: numbers are never reused"
        elif kept[number].get("sent_by") != made[number].get("sent_by"):
            yield f"{name} is sent by {made[number].get('sent_by')}, and was by {kept[number].get('sent_by')}"
        elif after[: len(before)] != before:
            place = next(
                (i for i, (b, a) in enumerate(zip(before, after, strict=False)) if b != a), len(after)
            )
            yield f"{name} is misread from field {place} on ({before[place]['name']}): fields are only appended"
        elif any(each["required"] for each in after[len(before) :]):
            yield f"{name} has a new field without a default: older applications do not send it"
        elif len(after) > len(before):
            added = ", ".join(each["name"] for each in after[len(before) :])
            yield f"{name} has {added} appended, which is not written down: run `fairlead check sdk-drift --write`"
