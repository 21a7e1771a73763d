"""Keys of a TOML file are changed where they stand; everything else stays as somebody wrote it."""

from __future__ import annotations

import pytest
import tomli

from fairlead.cli.toml_lines import NotEditable, with_keys

TEXT = """# the fleet's
schema_version = 1

[security]  # keep these to yourself
# proxy_secret_file = "/old/example"
proxy_secret_file = "keys/proxy"

[store]
url = "sqlite:///x.db"
"""


def test_a_key_is_replaced_added_and_taken_out_and_comments_stay() -> None:
    one = with_keys(
        TEXT, "security", {"proxy_secret_file": "keys/new", "proxy_secret_previous_file": "keys/proxy"}
    )
    assert tomli.loads(one)["security"] == {
        "proxy_secret_file": "keys/new", "proxy_secret_previous_file": "keys/proxy",
    }  # fmt: skip
    assert '# proxy_secret_file = "/old/example"' in one
    assert "# keep these to yourself" in one
    back = with_keys(one, "security", {"proxy_secret_file": "keys/proxy", "proxy_secret_previous_file": None})
    assert back == TEXT


def test_a_table_that_is_not_there_is_made() -> None:
    assert tomli.loads(with_keys(TEXT, "jwt", {"hs256_secret_file": "a\\b"}))["jwt"] == {
        "hs256_secret_file": "a\\b"
    }


@pytest.mark.parametrize(
    "text",
    [
        'security.proxy_secret_file = "keys/proxy"\n',
        'security = { proxy_secret_file = "keys/proxy" }\n',
        '[security]\nproxy_secret_file = """\nkeys/proxy"""\n',
    ],
)
def test_what_is_written_in_another_way_is_left_to_people(text: str) -> None:
    with pytest.raises(NotEditable):
        with_keys(text, "security", {"proxy_secret_file": "keys/new"})
