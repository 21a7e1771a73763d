"""A secret is found in whatever form it is written, what is none is left alone, and nothing found is ever shown."""

from __future__ import annotations

import base64
import random

import pytest

from fairlead.cli.leaks import (
    find,
    is_secret_name,
    known,
    secrets_of_environment,
    secrets_of_settings,
    without_secrets,
)

_RANDOM = random.Random(4711)  # the same in every process that collects these tests


def _hex(count: int) -> str:
    return _RANDOM.randbytes(count).hex()


def _urlsafe(count: int) -> str:
    return base64.urlsafe_b64encode(_RANDOM.randbytes(count)).rstrip(b"=").decode()


SECRET = _hex(32)
RAW = bytes.fromhex(SECRET)
FORMS = {
    "hex": SECRET.encode(),
    "capitals": SECRET.upper().encode(),
    "raw": RAW,
    "base64": base64.b64encode(RAW),
    "base64url": base64.urlsafe_b64encode(RAW),
    "base64 after one byte": base64.b64encode(b"x" + RAW + b"more"),
    "base64 after two bytes": base64.urlsafe_b64encode(b"xy" + RAW + b"more"),
    "base64 of its text": base64.b64encode(SECRET.encode()),
    "base64 of a pair": base64.b64encode(f"user:{SECRET}".encode()),
    "hex of its text": SECRET.encode().hex().encode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_known_secret_is_found_in_every_form(form: str) -> None:
    wanted = known("security.proxy_secret", SECRET)
    assert wanted is not None
    found = find(b"first\nsecond " + FORMS[form] + b" rest\nthird", [wanted])
    assert [(each.what, each.line) for each in found if each.form != "by its shape"] == [
        ("security.proxy_secret", 2)
    ]
    assert SECRET not in str(found)


@pytest.mark.parametrize(
    "text",
    [
        "-----BEGIN RSA PRIVATE KEY-----",
        f"flk_{_hex(8)}_{_urlsafe(32)}",
        "Authorization: Bearer " + _urlsafe(24),
        '"x-ops-key": "' + _hex(24) + '"',
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9." + _urlsafe(32),
        "postgresql://fairlead:hunter22@db.internal/fairlead",
        f"DISPATCH_HMAC_SECRET={_hex(32)}",
        f'proxy_secret = "{base64.b64encode(_RANDOM.randbytes(32)).decode()}"',
    ],
)
def test_what_looks_like_a_secret_is_found_without_knowing_it(text: str) -> None:
    assert [each.form for each in find(f"a\n{text}\n".encode(), [])] == ["by its shape"] * 1


@pytest.mark.parametrize(
    "text",
    [
        "correlation_id=01a2145b-a161-7d05-b638-a9d3bc3987b9 key_id=" + _hex(8),
        '{"digest": "' + _hex(32) + '", "hash": "' + _hex(32) + '"}',
        "idempotency_key=order-4711 ordering_key=a node=lobby-1",
        "proxy_secret=[redacted] url=postgresql://fairlead:[redacted]@db/x",
        "postgresql://fairlead@db/x http://127.0.0.1:9100/status",
        "DISPATCH_HMAC_SECRET is not set; `fairlead secret new` makes one",
    ],
)
def test_what_is_no_secret_is_left_alone(text: str) -> None:
    assert find(text.encode(), [known("x", SECRET)]) == []  # type: ignore[list-item]


def test_settings_are_shown_without_their_secrets_and_these_are_known() -> None:
    data = {
        "security": {"proxy_secret": SECRET, "token_ttl_millis": 5}, "store": {"url": "postgresql://me:a-long-password@db/x"},
        "reliability": {"ops_keys": ["first-operator-key-of-it", "second-operator-key-of-it"], "ops_rate_max": 3},
        "dispatch": {"hmac_secret_file": "/etc/secret"}, "server_id": "lobby-1",
    }  # fmt: skip
    shown = str(without_secrets(data))
    for secret in (SECRET, "a-long-password", "first-operator-key-of-it"):
        assert secret not in shown
    assert "lobby-1" in shown
    assert "/etc/secret" in shown
    assert "postgresql://me:[redacted]@db/x" in shown
    names = [each.name for each in secrets_of_settings(data, lambda path: _hex(32))]
    assert sorted(names) == sorted([
        "security.proxy_secret", "the password in store.url", "reliability.ops_keys", "reliability.ops_keys",
        "dispatch.hmac_secret",
    ])  # fmt: skip


def test_which_names_hold_secrets() -> None:
    for name in ("SECURITY_PROXY_SECRET", "RELIABILITY_OPS_KEYS", "FAIRLEAD_OPS_KEY", "ADMIN_JWT", "rcon.password",
                 "proxy_secret_previous", "worker.tasks_auth_token", "node_key"):  # fmt: skip
        assert is_secret_name(name), name
    for name in ("server_id", "idempotency_key", "key_id", "public_key", "dispatch.max_nonces", "jwt.issuer"):
        assert not is_secret_name(name), name
    environ = {
        "DISPATCH_HMAC_SECRET": SECRET,
        "STORE_URL": "postgresql://a:long-enough-pw@h/x",
        "PATH": "/bin",
        "A_KEY": "x",
    }
    assert [each.name for each in secrets_of_environment(environ)] == [
        "DISPATCH_HMAC_SECRET",
        "the password in STORE_URL",
    ]
