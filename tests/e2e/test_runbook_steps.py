"""The harmless blocks of docs/runbook.md (`sh demo`), run against a fleet as printed: each command ends with 0.

They share one fleet and their order, as an operator would go through the page; at its end everything is as it was.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.ctl import cli
from tests.support.processes import Fleet, clean_environ
from tests.test_runbook_names import PAGE, ROOT, printed

pytestmark = pytest.mark.e2e
BOUND_S = 120  # on a busy machine; a dozen seconds otherwise

# One interpreter for all of them: starting it is most of what a command takes. A line that is not ours is the shell's.
_DRIVER = """
import contextlib, io, json, os, shlex, subprocess, sys, time
from fairlead.cli.main import main
found = []
for line in json.load(sys.stdin):
    out, err, began = io.StringIO(), io.StringIO(), time.monotonic()
    words = shlex.split(line)
    if words[0] == "fairlead":
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = main(words[1:])
            except SystemExit as ended:
                status = ended.code or 0
            except Exception as error:
                status = f"{type(error).__name__}: {error}"
    else:
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=20)
        status = done.returncode
        out.write(done.stdout), err.write(done.stderr)
    found.append((line, status, out.getvalue(), err.getvalue(), time.monotonic() - began))
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(
        tmp_path_factory.mktemp("runbook"),
        environ={"DISPATCH_HMAC_SECRET": secrets.token_hex(32), "JWT_HS256_SECRET": secrets.token_hex(32)},
        proxy={"jwt": {"issuer": "https://issuer.test", "audience": "fairlead"}},
    )
    with closing(made.start()):
        yield made


def environ_of(fleet: Fleet) -> dict[str, str]:
    """What the page says that an operator has."""
    node = fleet.processes["lobby-1"]
    return {
        **clean_environ(),
        "PYTHONPATH": str(ROOT),
        "FAIRLEAD_URL": f"http://127.0.0.1:{fleet.ops_port}",
        "FAIRLEAD_OPS_KEY": fleet.ops_key,
        **fleet.environ,
        "SECURITY_PROXY_SECRET": fleet.secret,
        "RELIABILITY_OPS_KEYS": fleet.ops_key,
        "FAIRLEAD_PROXY_SECRET": fleet.secret,
        "API_BASE_URL": f"http://127.0.0.1:{fleet.ops_port}",
        "WORKER_BASE_URL": f"http://127.0.0.1:{node.health_port}",
        "WEB_BASE_URL": f"http://127.0.0.1:{fleet.http}",
    }


def folder_of(fleet: Fleet) -> Path:
    """Where an operator stands: the configurations and the documents are here."""
    (fleet.folder / "node.toml").symlink_to(fleet.folder / "lobby-1.toml")
    (fleet.folder / "docs").symlink_to(ROOT / "docs")
    return fleet.folder


def test_each_harmless_step_works_as_printed(fleet: Fleet) -> None:
    lines = [line for fence, line in printed() if fence == "sh demo"]
    assert len(lines) > 50, PAGE
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER], input=json.dumps(lines), env=environ_of(fleet), cwd=folder_of(fleet),
        capture_output=True, text=True, timeout=BOUND_S, check=True,
    )  # fmt: skip
    said = {}
    for line, status, out, err, seconds in json.loads(done.stdout):
        said.setdefault(line, []).append((status, out, err))
        if seconds > 1:
            print(f"{seconds:5.1f} s  {line}")
    wrong = [f"{line}\n  {each}" for line, found in said.items() for each in found if each[0] != 0]
    assert not wrong, "\n".join(wrong) + fleet.tails(5)
    # What a step claims beside its exit status.
    twice = said["fairlead ctl dispatch demo:echo text=once --idempotency-key INC-42-check --wait 10"]
    runs = {re.findall(r"[0-9a-f]{8}-[0-9a-f-]{27}", out)[0] for _, out, _ in twice}
    assert (len(twice), len(runs)) == (2, 1), twice
    assert fleet.ops("GET", "/api/controls/kill-switch").json()["on"] is False
    assert fleet.ops("GET", "/api/controls/rollout").json()["overridden"] is None
    assert {each["rollout_percentage"] for each in fleet.ops("GET", "/api/flags").json()["flags"]} == {100}
    assert fleet.client().status == 200


def admins_token(fleet: Fleet) -> str:
    """As an issuer makes it that shares a secret with the proxy."""

    def b64(raw: bytes) -> bytes:
        return base64.urlsafe_b64encode(raw).rstrip(b"=")

    now_s = int(time.time())
    claims = {
        "iss": "https://issuer.test", "aud": "fairlead", "sub": "alice", "role": "admin", "iat": now_s,
        "exp": now_s + 600,
    }  # fmt: skip
    said = b64(b'{"alg":"HS256","typ":"JWT"}') + b"." + b64(json.dumps(claims).encode())
    key = bytes.fromhex(fleet.environ["JWT_HS256_SECRET"])
    return (said + b"." + b64(hmac.new(key, said, hashlib.sha256).digest())).decode()


def test_variables_that_commands_read(fleet: Fleet) -> None:
    """ADMIN_JWT, BASE_URL and TEST_COMPANY_ID of the drill; TEST_OUTBOX, TEST_DLQ and TEST_AGENTS of smoke."""
    drill = {
        "DISPATCH_HMAC_SECRET": fleet.environ["DISPATCH_HMAC_SECRET"], "FAIRLEAD_OPS_KEY": "",
        "TEST_COMPANY_ID": "acme",
        "BASE_URL": f"http://127.0.0.1:{fleet.ops_port}", "FAIRLEAD_URL": "http://127.0.0.1:1",
    }  # fmt: skip
    signed = {"DISPATCH_HMAC_SECRET": fleet.environ["DISPATCH_HMAC_SECRET"]}
    smoke = ["smoke", "--rate", "40", "--duration", "1", "--json"]
    said = cli(
        fleet,
        (["drill"], {**drill, "ADMIN_JWT": admins_token(fleet)}),
        (["drill"], {**drill, "ADMIN_JWT": "of.no.issuer"}),
        (smoke, {**signed, "BASE_URL": "", "TEST_OUTBOX": "true"}),
        (smoke, {**signed, "TEST_OUTBOX": "", "TEST_DLQ": "true"}),
        (smoke, {**signed, "TEST_DLQ": "", "TEST_AGENTS": "true"}),
    )
    assert said[0].status == 0, said[0]
    assert said[1].status != 0
    judged = [each.out for each in said[2:]]
    assert [each.status for each in said[2:]] == [0, 0, 0]
    assert ["outbox lag" in each for each in judged] == [True, False, False]
    assert ["dead letters" in each for each in judged] == [False, True, False]
    assert ['"check": "nodes"' in each for each in judged] == [False, False, True]


def test_ctl_dispatch_signs_where_signatures_are_enforced(fleet: Fleet) -> None:
    """It once submitted unsigned whatever was at hand, and was refused wherever DISPATCH_HMAC_SECRET was set."""
    words = ["ctl", "dispatch", "demo:echo", "text=x"]
    unsigned, signed = cli(
        fleet, (words, {}), (words, {"DISPATCH_HMAC_SECRET": fleet.environ["DISPATCH_HMAC_SECRET"]})
    )
    assert unsigned.status == 1
    assert "SIGNATURE_MISSING" in unsigned.err
    assert signed.status == 0, signed


def test_the_blocks_that_are_not_run_say_why_by_what_they_name() -> None:
    """A block that is only checked names something of the reader's, or changes what a test would not have changed."""
    reader = re.compile(
        r"\b(ID|proxy\.toml|node\.toml|plan\.toml|reports/|silence|unsilence|systemctl|EMERGENCY|demo\.env|export)\b|\$[A-Z]|reports/|=http|TEST_"
    )
    block: list[str] = []
    for fence, line in printed():
        if fence == "sh" and not reader.search(line):
            block.append(line)
    assert block == [
        "fairlead ctl rollouts",
        "fairlead secret rotate status",
        "fairlead check prod-gate",
        "fairlead smoke",
    ]
    assert all(shlex.split(line)[0] == "fairlead" for line in block)
