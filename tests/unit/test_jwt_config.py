"""The [jwt] table, and what callers without credentials are opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.config_text import OPS_KEY, SECRET, strong, to_toml

from fairlead.proxy.config import ProxyConfig, load_proxy_config
from fairlead.runtime.config import ConfigError

SHARED, PREVIOUS = strong("jwt"), strong("jwt before")
WHO = {"issuer": "https://issuer.test/", "audience": "fairlead"}
URL = "https://issuer.test/keys.json"


@pytest.fixture
def read(tmp_path: Path) -> Any:
    def read(jwt: dict[str, Any], environ: dict[str, str] | None = None, **more: Any) -> ProxyConfig:
        path = tmp_path / "proxy.toml"
        base = {
            "schema_version": 1, "security": {"proxy_secret": SECRET}, "reliability": {"ops_keys": [OPS_KEY]},
            "jwt": jwt, **more,
        }  # fmt: skip
        path.write_text(to_toml(base))
        return load_proxy_config(str(path), environ or {})

    return read


def said(read: Any, jwt: dict[str, Any], **more: Any) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        read(jwt, **more)
    assert SHARED not in str(caught.value)
    assert PREVIOUS not in str(caught.value)
    return {problem.path: problem.message for problem in caught.value.problems}


def test_without_anything_said_no_token_is_believed_and_nothing_is_opened(read: Any) -> None:
    config = read({})
    assert (config.jwt.issuer, config.jwt.hs256_secrets, config.jwt.jwks_url) == ("", (), "")
    assert config.jwt.default_role == ""
    assert not config.reliability.ops_allow_demo_write


def test_either_kind_of_key_is_enough(read: Any) -> None:
    assert read({**WHO, "jwks_url": URL}).jwt.jwks_host == "issuer.test"
    shared = read({**WHO}, {"JWT_HS256_SECRET": SHARED, "JWT_HS256_SECRET_PREVIOUS": PREVIOUS}).jwt
    assert shared.hs256_secrets == (bytes.fromhex(SHARED), bytes.fromhex(PREVIOUS))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an issuer without a key": ({**WHO}, "jwt.issuer"),
    "a key without an issuer": ({"audience": "a", "jwks_url": URL}, "jwt.issuer"),
    "a key without an audience": ({"issuer": "i", "jwks_url": URL}, "jwt.audience"),
    "keys over http": ({**WHO, "jwks_url": "http://issuer.test/"}, "jwt.jwks_url"),
    "keys from a file": ({**WHO, "jwks_url": "file:///keys"}, "jwt.jwks_url"),
    "credentials in the URL": ({**WHO, "jwks_url": "https://u:p@issuer.test/"}, "jwt.jwks_url"),
    "a weak secret": ({**WHO, "hs256_secret": "secret"}, "jwt.hs256_secret"),
    "a previous secret alone": ({"hs256_secret_previous": SHARED}, "jwt.hs256_secret_previous"),
    "the same secret twice": (
        {**WHO, "hs256_secret": SHARED, "hs256_secret_previous": SHARED}, "jwt.hs256_secret_previous",
    ),
    "alg none": ({**WHO, "jwks_url": URL, "algorithms": ["none"]}, "jwt.algorithms[0]"),
    "HS256 as published": ({**WHO, "jwks_url": URL, "algorithms": ["HS256"]}, "jwt.algorithms[0]"),
    "no algorithm": ({**WHO, "jwks_url": URL, "algorithms": []}, "jwt.algorithms"),
    "too soon stale": ({**WHO, "jwks_url": URL, "jwks_stale_max_s": 599}, "jwt.jwks_stale_max_s"),
    "a huge leeway": ({**WHO, "jwks_url": URL, "leeway_s": 301}, "jwt.leeway_s"),
    "an unknown role": ({**WHO, "jwks_url": URL, "default_role": "root"}, "jwt.default_role"),
    "a claim with a space": ({**WHO, "jwks_url": URL, "role_claim": "a role"}, "jwt.role_claim"),
}  # fmt: skip


@pytest.mark.parametrize(("jwt", "path"), REFUSED.values(), ids=REFUSED.keys())
def test_what_could_not_be_verified_is_refused_with_the_configuration(
    read: Any, jwt: dict[str, Any], path: str
) -> None:
    assert path in said(read, jwt)


def test_production_lets_nobody_write_without_credentials(read: Any) -> None:
    opened = {"ops_keys": [OPS_KEY], "ops_allow_demo_write": True}
    assert "reliability.ops_allow_demo_write" in said(read, {}, reliability=opened)
    assert read({}, reliability=opened, environment="development").reliability.ops_allow_demo_write
