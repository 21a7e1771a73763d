"""`fairlead ctl audit verify` and `fairlead secret audit-key`: without a proxy, on files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.config_text import SECRET
from tests.unit.runtime.test_audit_chain import SIGNER, WHOLE, dropped

from fairlead.cli.main import main
from fairlead.runtime.audit_chain import Signer
from fairlead.runtime.secret import decode_secret

KEY = SIGNER.public_key.hex()


def written(folder: Path, lines: list[bytes]) -> str:
    path = folder / "export.jsonl"
    path.write_bytes(b"".join(lines))
    return str(path)


def test_a_whole_export_is_intact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, WHOLE)
    assert main(["ctl", "audit", "verify", file, "--public-key", KEY, "--expect-seq", "10"]) == 0
    assert capsys.readouterr().out == "intact: rows 1 to 10 (10), 3 checkpoints, the last of row 10\n"


def test_it_says_where_it_is_broken_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, dropped(WHOLE, 2))
    assert main(["ctl", "audit", "verify", file, "--public-key", KEY]) == 1
    out = capsys.readouterr().out
    assert "line 3, seq 4: row 4 follows row 2: 1 row is missing" in out
    assert "NOT INTACT" in out
    assert main(["ctl", "audit", "verify", file, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["problems"][0]["seq"] == 4


def test_it_says_that_signatures_were_not_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ctl", "audit", "verify", written(tmp_path, WHOLE)]) == 0
    assert "signatures were NOT checked" in capsys.readouterr().out


def test_a_file_that_is_still_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, [*WHOLE[:7], WHOLE[7][:20]])
    assert main(["ctl", "audit", "verify", file]) == 1
    capsys.readouterr()
    assert main(["ctl", "audit", "verify", file, "--live"]) == 0
    out = capsys.readouterr().out
    assert "no checkpoint covers rows 5 to 6 yet" in out
    assert "passed over" in out


@pytest.mark.parametrize("key", ["zz", "00"])
def test_a_key_that_is_none(tmp_path: Path, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ctl", "audit", "verify", written(tmp_path, WHOLE), "--public-key", key]) == 1
    assert capsys.readouterr().err.startswith("fairlead ctl audit verify:")


def test_a_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ctl", "audit", "verify", "/nonexistent"]) == 1
    assert "No such file" in capsys.readouterr().err


def test_the_public_key_is_printed_for_those_who_verify(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    assert main(["secret", "audit-key", "--file", str(secret)]) == 0
    said = capsys.readouterr()
    decoded = decode_secret(SECRET)
    assert isinstance(decoded, bytes)
    assert said.out.strip() == Signer(decoded).public_key.hex()
    assert Signer(decoded).key_id in said.err
