"""The commands of `node.toml` as handlers: announced, executed, reported and cancelled like those in Python.

Between the configuration and the executor, at the start of a node. Invariant: one name, one handler; a name that Python
code has too is refused, and neither of the two is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from fairlead.backend.command_config import CommandConfig
from fairlead.backend.config import NodeConfig
from fairlead.backend.handlers import Handler
from fairlead.backend.outside import LATER_S, Function, Outside, by_console, by_post, by_program
from fairlead.backend.rcon import RconSettings
from fairlead.protocol.registry import canonical_item
from fairlead.runtime.config import read_private_file
from fairlead.runtime.config_problems import Problem
from fairlead.runtime.posting import Post
from fairlead.runtime.world import World


def clashes(config: NodeConfig, names: Collection[str]) -> list[Problem]:
    """Commands of the file that the handlers (`names`) have too."""
    return [
        Problem(
            f"commands[{index}].name", command.name, "is a handler's too, and one command has one handler",
            "rename one, or set enabled = false",
        )
        for index, command in enumerate(config.commands)
        if command.enabled and command.name in names
    ]  # fmt: skip


def handlers_of(
    config: NodeConfig, world: World, value_bytes_max: int, post_through: Callable[[Collection[str]], Post]
) -> dict[str, Handler]:
    """A handler for each command. Raises OSError where a console's password cannot be read. `post_through` makes what
    sends HTTP, given the hosts that may lie inside."""
    offered = [command for command in config.commands if command.enabled]
    post = post_through(config.command_hosts) if any(command.post for command in offered) else None
    found: dict[str, Handler] = {}
    for command in offered:
        outside = Outside(
            command.name, command.effect, command.defaults, command.timeout_s, value_bytes_max, command.result == "json"
        )  # fmt: skip
        function: Function
        if command.run:
            function = by_program(world, outside, command.run)
        elif command.post:
            assert post is not None
            function = by_post(post, outside, command.post)
        else:
            function = _console(world, outside, command, config)
        # A program is stopped with its run; a server that was asked goes on, whatever becomes of the run.
        found[command.name] = Handler(
            canonical_item(command.descriptor), function, is_async=True, goes_on=not command.run
        )
    return found


def _console(world: World, outside: Outside, command: CommandConfig, config: NodeConfig) -> Function:
    table, shared = command.console, config.rcon
    if table.password_file:
        password = read_private_file(table.password_file).strip()
    else:
        password = "" if shared.password is None else shared.password.get_secret_value()
    settings = RconSettings(
        table.host or shared.host, table.port or shared.port, password, command.timeout_s + LATER_S
    )
    chosen = {each.name for each in command.takes if each.choices_json}
    return by_console(world, outside, settings, table.pieces, chosen, table.expect)
