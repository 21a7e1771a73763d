"""`fairlead check prod-gate`: the critical suite against a running deployment, which changes nothing there.

Health; who has no key, a wrong one or too little of a role is refused; a signed request is taken once and not twice;
one tenant does not see another; a replay can be looked at; an echo comes back where the demo's commands are. Bounded:
some thirty calls, one minute. Invariants: what is sent where a guard is missing does nothing further on (nobody's ids,
no command of that name, dry runs); the two keys that it makes are good for minutes, and revoked before it ends.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from typing import Any, Final

from fairlead.cli import findings
from fairlead.cli.asking import Asker, NotAnswered, Reply
from fairlead.cli.ctl.calling import DEFAULT_URL
from fairlead.cli.findings import ERROR, OK, WARNING, Found
from fairlead.cli.sign import SECRET_NAMES, NotSigned, read_key
from fairlead.protocol.reasons import Reason
from fairlead.proxy.ops.parity import UNKNOWN_KEY
from fairlead.runtime.request_signing import SigningKey
from fairlead.runtime.world import RealWorld

WHOLE_TIMEOUT_S: Final = 60.0
KEY_VALID_S: Final = 300
NAME: Final = "fairlead-prod-gate"
OWN, OTHER = NAME, f"{NAME}-other"
ECHO: Final = "demo:echo"
REPLAY: Final = "/api/ops/reliability/dlq/replay"
_NOTHING: Final = {"command": f"{NAME}:none"}


def check(options: argparse.Namespace) -> int:
    """`fairlead check prod-gate`."""
    gate = findings.Gate("prod-gate", options)
    url = options.url or os.environ.get("BASE_URL") or os.environ.get("FAIRLEAD_URL", DEFAULT_URL)
    if not options.ops_key:
        return gate.could_not_run("give an admin's key: --ops-key or FAIRLEAD_OPS_KEY")
    try:
        signing = signing_key(options.secret_file)
    except (NotSigned, OSError) as error:
        return gate.could_not_run(str(error))
    world = RealWorld()
    asker = Asker(world, url, options.ops_key, signing, whole_timeout_s=WHOLE_TIMEOUT_S)
    try:
        return gate.end(list(Suite(asker).run()), url=url)
    finally:
        asker.close()


def signing_key(file: str | None) -> SigningKey | None:
    """The secret that requests are signed with, if one is at hand. Raises NotSigned, OSError."""
    if file or any(os.environ.get(name, "").strip() for name in SECRET_NAMES):
        return read_key(file, os.environ)
    return None


class Suite:
    """Every step, one after another. One that fails does not hide the next."""

    def __init__(self, asker: Asker) -> None:
        self._asker = asker
        self._keys: dict[str, str] = {}
        self._ids: list[str] = []
        self._enforces = True

    def run(self) -> Iterator[Found]:
        steps: tuple[Callable[[], Iterator[Found]], ...] = (
            self._health, self._strangers, self._make_keys, self._roles, self._signed, self._tenants, self._dry_run,
            self._echo,
        )  # fmt: skip
        try:
            for step in steps:
                name = step.__name__.strip("_").replace("_", " ")
                try:
                    yield from step()
                except NotAnswered as error:
                    yield Found(ERROR, name, str(error))
                except (KeyError, TypeError, AttributeError, ValueError) as error:
                    yield Found(ERROR, name, f"an answer has another shape than is known here: {error!r}")
        finally:
            left = self._tidied()
        yield from (Found(WARNING, "keys", each) for each in left)

    # -- steps

    def _health(self) -> Iterator[Found]:
        answer = self._asker.ask("GET", "/health", key="")
        status = str(answer.body["status"])
        bad = [
            f"{name} {each['reason']}"
            for name, each in answer.body["checks"].items()
            if each["state"] != "ok"
        ]
        if answer.status != 200:
            yield Found(ERROR, "health", f"{answer.status} {status}: {', '.join(bad)}")
        elif status == "READY":
            yield Found(OK, "health", "READY")
        else:
            yield Found(WARNING, "health", f"{status}: {', '.join(bad)}")
        yield self._judge("health of store and disk", self._asker.ask("GET", "/health/test"), 200)

    def _strangers(self) -> Iterator[Found]:
        asker = self._asker
        for who, key in (("no key", ""), ("a wrong key", UNKNOWN_KEY)):
            answer = asker.ask("GET", "/api/nodes", key=key)
            yield self._judge(f"{who} reads nothing", answer, Reason.UNAUTHENTICATED)
            answer = asker.ask("POST", "/api/dispatch", _NOTHING, key=key)
            yield self._judge(f"{who} submits nothing", answer, Reason.UNAUTHENTICATED)
            answer = asker.ask("POST", f"/api/nodes/{NAME}/drain", {}, key=key)
            yield self._judge(f"{who} operates nothing", answer, Reason.UNAUTHENTICATED)

    def _make_keys(self) -> Iterator[Found]:
        for name, fields in (("viewer", {"role": "viewer"}), ("tenant", {"role": "operator", "tenant": OWN})):
            answer = self._asker.ask(
                "POST",
                "/api/operator-keys",
                {**fields, "valid_s": KEY_VALID_S, "note": "fairlead check prod-gate"},
            )
            if answer.status != 201:
                yield Found(
                    ERROR, "keys", f"this key makes none ({answer}): an admin's is needed, bound to no tenant"
                )
                return
            self._keys[name] = answer.body["key"]
            self._ids.append(answer.body["id"])

    def _roles(self) -> Iterator[Found]:
        if "viewer" not in self._keys:
            yield Found(ERROR, "a viewer operates nothing", "not asked: there is no viewer's key")
            return
        viewer = self._keys["viewer"]
        answer = self._asker.ask("POST", f"/api/nodes/{NAME}/drain", {}, key=viewer)
        yield self._judge("a viewer operates nothing", answer, Reason.SCOPE_MISSING)
        answer = self._asker.ask("POST", REPLAY, {"company_id": OWN, "max": 1, "dry_run": True}, key=viewer)
        yield self._judge("a viewer replays nothing", answer, Reason.SCOPE_MISSING)

    def _signed(self) -> Iterator[Found]:
        asker = self._asker
        if asker.signing is None:
            guards = asker.ask("GET", "/status").body["guards"]
            needed = guards["integrity"] != "off"
            detail = f"not asked: set {SECRET_NAMES[0]} (integrity is {guards['integrity']} there)"
            yield Found(ERROR if needed else WARNING, "a signed request", detail)
            return
        body = json.dumps({"company_id": OWN, "max": 1, "dry_run": True}).encode()
        header = asker.signature("POST", REPLAY, body)
        yield self._judge("a signed request is taken", asker.ask("POST", REPLAY, body, headers=header), 200)
        again = asker.ask("POST", REPLAY, body, headers=header)
        yield self._judge("a signed request is not taken twice", again, Reason.SECURITY_REPLAY_DETECTED)
        other = asker.signature("POST", REPLAY, body + b" ")
        changed = asker.ask("POST", REPLAY, body, headers=other)
        yield self._judge("a signature of something else is refused", changed, Reason.SIGNATURE_INVALID)

    def _tenants(self) -> Iterator[Found]:
        if "tenant" not in self._keys:
            yield Found(ERROR, "one tenant's wall", "not asked: there is no tenant's key")
            return
        key, asker = self._keys["tenant"], self._asker
        for what, answer, reason in (
            ("reads no other's runs", asker.ask("GET", f"/api/runs?tenant={OTHER}", key=key),
             Reason.SECURITY_READ_TENANT_MISMATCH),
            ("reads nothing of the fleet", asker.ask("GET", "/api/nodes", key=key),
             Reason.SECURITY_READ_TENANT_MISMATCH),
            ("submits for no other", asker.submit({**_NOTHING, "tenant": OTHER}, key=key),
             Reason.SECURITY_TENANT_MISMATCH),
            ("replays no other's", asker.ask("POST", REPLAY, {"company_id": OTHER, "max": 1, "dry_run": True}, key=key),
             Reason.SECURITY_TENANT_MISMATCH),
        ):  # fmt: skip
            yield self._judge(f"a tenant {what}", answer, reason)

    def _dry_run(self) -> Iterator[Found]:
        answer = self._asker.ask("POST", REPLAY, {"company_id": OWN, "max": 1, "dry_run": True})
        yield self._judge("a replay can be looked at", answer, 200)

    def _echo(self) -> Iterator[Found]:
        listed = self._asker.ask("GET", "/api/commands")
        if ECHO not in [each["name"] for each in listed.body["commands"] if each["nodes"]]:
            yield Found(OK, "an echo", f"no node offers {ECHO}: nothing is dispatched")
            return
        wanted = {
            "command": ECHO,
            "args": {"text": NAME},
            "target": "any",
            "tenant": OWN,
            "deadline_ms": 10_000,
        }
        answer = self._asker.submit(wanted, wait_s=10)
        came: Any = answer.body if isinstance(answer.body, dict) else {}
        if answer.status == 200 and came.get("status") == "COMPLETED" and came["result"]["text"] == NAME:
            yield Found(OK, "an echo", f"COMPLETED on {came.get('node_id')}")
        else:
            yield Found(
                ERROR, "an echo", f"{answer} {came.get('status', '')} {came.get('detail', '')}".strip()
            )

    # -- judging, and tidying up

    def _judge(self, what: str, answer: Reply, due: Reason | int) -> Found:
        if isinstance(due, int):
            good = answer.status == due
        else:
            good = answer.reason == due.value
        wanted = due if isinstance(due, int) else due.value
        return (
            Found(OK, what, str(answer)) if good else Found(ERROR, what, f"answered {answer}, not {wanted}")
        )

    def _tidied(self) -> list[str]:
        """Revoke what was made; what stays ends by itself, and is told."""
        left = []
        for key_id in self._ids:
            try:
                answer = self._asker.ask("POST", f"/api/operator-keys/{key_id}/revoke")
            except NotAnswered as error:
                left.append(f"{key_id} was not revoked ({error}), and ends in {KEY_VALID_S} s")
            else:
                if answer.status != 200:
                    left.append(f"{key_id} was not revoked ({answer}), and ends in {KEY_VALID_S} s")
        return left
