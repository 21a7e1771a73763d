"""[[commands]]: what is announced of them, and every way in which they are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.unit.backend.test_node_config import BASE, read, refused

from fairlead.backend.command_config import CommandConfig
from fairlead.backend.commands import clashes
from fairlead.backend.config import load_node_config
from fairlead.protocol.registry import Flag
from fairlead.protocol.schema import Parameter
from fairlead.runtime.config import ConfigError

RUN = {"name": "lobby:do", "run": ["/bin/true"]}
KICK = {
    "name": "lobby:kick", "parameters": {"player": "string"},
    "rcon": {"line": "kick {player}", "port": 25575, "password_file": "p"},
}  # fmt: skip


def command(**more: Any) -> CommandConfig:
    return read({**BASE, "commands": [{**RUN, **more}]}).commands[0]


def problems(*commands: dict[str, Any], **more: Any) -> dict[str, str]:
    return refused({**BASE, **more, "commands": list(commands)})


def test_what_is_announced() -> None:
    made = command(
        description="Does it.", effect="idempotent", timeout_s=7, attempts=3, version=2, aliases=["do"],
        permission="lobby.do", player_only=True, hidden=True, requires_approval=True,
        parameters={
            "player": "string",
            "how": {"type": "string", "choices": ["fast", "slow"], "default": "fast"},
            "times": {"type": "integer", "required": False, "nullable": True},
            "password": {"type": "string", "secret": True, "default": "hunter2"},
        },
    )  # fmt: skip
    found = made.descriptor
    assert (found.name, found.version, found.aliases) == ("lobby:do", 2, ("do",))
    assert (found.description, found.permission) == ("Does it.", "lobby.do")
    assert (found.effect, found.timeout_ms, found.attempts_max) == ("idempotent", 7_000, 3)
    assert found.flags == Flag.PLAYER_ONLY | Flag.HIDDEN | Flag.REQUIRES_APPROVAL
    assert found.usage == "lobby:do player= [how=] [times=] [password=]"
    assert found.parameters == (
        Parameter("player", "string"),
        Parameter("how", "string", False, False, ('"fast"', '"slow"'), '"fast"'),
        Parameter("times", "integer", False, True),
        Parameter("password", "string", False, False, (), '"[redacted]"', True),
    )
    assert made.defaults == {"how": "fast", "password": "hunter2"}


def test_transactional_is_refused_with_the_reason_why() -> None:
    why = problems({**RUN, "effect": "transactional"})["commands[0].effect"]
    assert "is not in the transaction of the node's inbox" in why
    assert '"once" or "idempotent"' in why
    assert '"once" or "idempotent"' in problems({**RUN, "effect": "twice"})["commands[0].effect"]


@pytest.mark.parametrize("name", ["do", "Lobby:do", "lobby:", "fairlead:transfer", "a:b:c"])
def test_names_that_are_none(name: str) -> None:
    assert "commands[0].name" in problems({**RUN, "name": name})


def test_a_command_is_done_in_one_way() -> None:
    message = "or post or rcon: exactly one is required"
    assert problems({"name": "lobby:do"}) == {"commands[0].run": message}
    assert problems({**RUN, "post": "http://127.0.0.1/"}) == {"commands[0].run": message}


def test_two_commands_have_two_names() -> None:
    assert problems(RUN, RUN) == {"commands[1].name": "is the name of another command"}


def test_time_beyond_what_the_node_gives_anybody_is_refused() -> None:
    assert "at most 30000 ms" in problems({**RUN, "timeout_s": 31})["commands[0].timeout_s"]
    assert command(timeout_s=30).timeout_s == 30


@pytest.mark.parametrize(
    "parameters",
    [{"a": 5}, {"a": "text"}, {"a": {"type": 5}}, {"a": {"typ": "string"}}, {"a": {"required": "yes"}},
     {"a-b": "string"}, {"a": {"type": "string", "default": 5}}, {"a": {"type": "string", "choices": "fast"}},
     {"a": {"type": "string", "choices": [5]}}, {"a": {"type": "string", "choices": ["x"], "default": "y"}},
     {"a": {"type": "string", "default": "x", "required": True}}, {"a": {"secret": 1}}],
    ids=str,
)  # fmt: skip
def test_parameters_that_are_none(parameters: dict[str, Any]) -> None:
    assert "commands[0].parameters" in problems({**RUN, "parameters": parameters})


def test_limits_of_descriptors_hold() -> None:
    many = {f"p{number}": "string" for number in range(65)}
    assert problems({**RUN, "parameters": many})["commands[0].name"] == "is refused: at most 64 parameters"
    assert "alias" in problems({**RUN, "aliases": ["Not Good"]})["commands[0].name"]


@pytest.mark.parametrize("run", [[""], ["a\0b"], ["x"] * 65])
def test_programs_that_are_none(run: list[str]) -> None:
    assert "commands[0].run" in problems({"name": "lobby:do", "run": run})


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "127.0.0.1:80", "http://a b/", "http://u:p@127.0.0.1/"])
def test_urls_that_are_none(url: str) -> None:
    assert "commands[0].post" in problems({"name": "lobby:do", "post": url})


def test_only_loopback_or_listed_hosts_are_sent_to() -> None:
    for host in ("127.0.0.1", "localhost", "[::1]", "127.9.9.9"):
        assert read({**BASE, "commands": [{"name": "lobby:do", "post": f"http://{host}:80/"}]})
    away = {"name": "lobby:do", "post": "http://10.0.0.5:8080/"}
    assert problems(away) == {"commands[0].post": "is neither loopback nor listed"}
    assert read({**BASE, "worker": {"command_allowed_hosts": ["10.0.0.5"]}, "commands": [away]})
    console = {**KICK, "rcon": {**KICK["rcon"], "host": "game.example"}}
    assert problems(console) == {"commands[0].rcon": "is neither loopback nor listed"}


@pytest.mark.parametrize(
    ("rcon", "message"),
    [
        ({"line": "kick {player}", "port": "25575"}, "port must be an integer"),
        ({"line": "kick {player}", "port": True}, "port must be an integer"),
        ({"line": "kick {player}", "port": 99_999}, "port is not one"),
        ({"line": "kick {player}", "password": "x"}, "has a key that is none"),
        ({"port": 25575}, "line is empty"),
        ({"line": "{player}"}, "line begins with an argument"),
        ({"line": "kick {player}", "port": 25575}, "names a port and no password_file"),
        ({"line": "kick {player}"}, "names no port, and [rcon] has none"),
        ({"line": "kick {who}", "port": 1, "password_file": "p"}, "is in the line and no parameter"),
    ],
)
def test_consoles_that_are_refused(rcon: dict[str, Any], message: str) -> None:
    assert message in problems({**KICK, "rcon": rcon})["commands[0].rcon"]


@pytest.mark.parametrize(
    ("parameter", "message"),
    [("object", "cannot stand in a line"), ({"type": "string", "nullable": True}, "cannot stand in a line"),
     ({"type": "string", "required": False}, "may be missing")],
    ids=str,
)  # fmt: skip
def test_arguments_of_a_line_are_scalars_that_are_there(parameter: Any, message: str) -> None:
    assert message in problems({**KICK, "parameters": {"player": parameter}})["commands[0].rcon"]


def test_a_console_may_be_that_of_the_rcon_table() -> None:
    shared = {"port": 25575, "password": "swordfish"}
    made = read({**BASE, "rcon": shared, "commands": [{**KICK, "rcon": {"line": "kick {player}"}}]})
    assert made.commands[0].console.port == 0


def test_a_password_file_is_judged_when_the_file_is_loaded(tmp_path: Path) -> None:
    secret, config = tmp_path / "password", tmp_path / "node.toml"
    config.write_text(
        f'schema_version = 1\nserver_id = "lobby-1"\nproxy_secret = "{BASE["proxy_secret"]}"\n[[commands]]\n'
        f'name = "lobby:list"\nrcon = {{ line = "list", port = 1, password_file = "{secret}" }}\n'
    )
    with pytest.raises(ConfigError, match=r"commands\[0\].rcon: cannot be used: No such file"):
        load_node_config(str(config), {})
    secret.write_text("swordfish")
    secret.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_node_config(str(config), {})
    secret.chmod(0o600)
    assert load_node_config(str(config), {}).commands


def test_a_name_that_a_handler_has_too_is_refused_unless_the_command_is_off() -> None:
    config = read({**BASE, "commands": [RUN]})
    assert not clashes(config, {"lobby:other"})
    (problem,) = clashes(config, {"lobby:do"})
    assert str(problem).startswith("commands[0].name: is a handler's too")
    assert not clashes(read({**BASE, "commands": [{**RUN, "enabled": False}]}), {"lobby:do"})
