"""The table for Minecraft clients: what the edge is told of it, and what contradicts itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.config_text import OPS_KEY, SECRET, to_toml

from fairlead.proxy.config import REFUSED_PREFIXES, ProxyConfig
from fairlead.proxy.edge.minecraft.listener import read_favicon
from fairlead.proxy.edge.settings import GameConfig
from fairlead.proxy.edge_assembly import edge_config
from fairlead.runtime.config import ConfigError, load

LISTENER = {"name": "mc", "kind": "minecraft", "port": 25565, "default_backend_id": "lobby-1"}


def read(listener: dict[str, Any] | None = None, **game: Any) -> ProxyConfig:
    data = {
        "schema_version": 1,
        "security": {"proxy_secret": SECRET},
        "listeners": [{**LISTENER, **(listener or {})}],
        "backends": [{"id": "lobby-1", "host": "127.0.0.1", "port": 25566}],
        "reliability": {"ops_keys": [OPS_KEY]},
        "minecraft": game,
    }
    return load(
        ProxyConfig, to_toml(data), "proxy.toml", {}, aliases={}, refused_prefixes=REFUSED_PREFIXES,
        read_file=lambda path: Path(path).read_text(),
    )  # fmt: skip


def test_the_edge_is_told_what_the_table_says() -> None:
    assert edge_config(read()).game == GameConfig()
    told = edge_config(read({"fallback": "tcp", "fallback_after_ms": 250}, motd="Hi", return_to_origin_s=5))
    assert (told.game.motd, told.game.origin_s) == ("Hi", 5)
    assert (told.listeners[0].kind, told.listeners[0].fallback) == ("minecraft", "tcp")
    assert told.listeners[0].fallback_after_s == 0.25


@pytest.mark.parametrize(
    ("listener", "game", "words"),
    [
        ({}, {"protocol_min": 800, "protocol_max": 700}, "nobody is let in"),
        ({"kind": "tcp", "fallback": "tcp"}, {}, "is for listeners of kind minecraft"),
        ({}, {"hold_s": 29}, "minecraft.hold_s"),  # a client would have given up before
    ],
)
def test_what_contradicts_itself_is_refused(listener: dict[str, Any], game: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read(listener, **game)


def test_a_favicon_that_cannot_be_shown_stops_the_start_and_says_why(tmp_path: Path) -> None:
    picture = tmp_path / "icon.png"
    with pytest.raises(OSError, match=r"minecraft\.favicon_file: .*No such file"):
        read_favicon(str(picture))
    picture.write_bytes(b"GIF89a")
    with pytest.raises(OSError, match="is not a PNG"):
        read_favicon(str(picture))
    head = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
    picture.write_bytes(head + (64).to_bytes(4, "big") * 2 + bytes(20))
    assert read_favicon(str(picture)).startswith("data:image/png;base64,iVBOR")
