"""Runs a proxy or a node as a process: configuration, log, signals, exit status."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import trio

from fairlead.backend.app import NodeProcess
from fairlead.backend.app import StartRefused as NodeStartRefused
from fairlead.backend.commands import clashes
from fairlead.backend.config import NodeConfig, load_node_config
from fairlead.backend.handlers import Node
from fairlead.proxy.app import Proxy
from fairlead.proxy.assembly import StartRefused as ProxyStartRefused
from fairlead.proxy.config import load_proxy_config
from fairlead.proxy.reloading import Reloaded
from fairlead.proxy.telemetry_assembly import machine_resources
from fairlead.runtime.child import start_child
from fairlead.runtime.config import ConfigError
from fairlead.runtime.handover import HandoverFailed, Offer, passed_by_service_manager, take_over
from fairlead.runtime.log import Log, StderrSink
from fairlead.runtime.metrics import Metrics
from fairlead.runtime.observer import Observer
from fairlead.runtime.process import (
    EXIT_CONFIG,
    EXIT_FAILED,
    EXIT_STOPPED,
    run_until_signalled,
    settle_memory,
)
from fairlead.runtime.world import RealWorld, raise_file_limit

RELEASE_TIMEOUT_S: Final = 15.0  # for a running proxy to close its store after it was asked to
Serve = Callable[[trio.Event], Awaitable[None]]


def run_proxy(path: str, environ: Mapping[str, str], is_successor: bool = False) -> int:
    """`fairlead proxy --config FILE`. `is_successor`: take over from the process that runs, if one does."""
    try:
        config = load_proxy_config(path, environ)
    except ConfigError as error:
        return _refused(path, error)
    world = RealWorld()
    log = Log(
        StderrSink(), world.wall_ms, "proxy", config.logging.level, as_json=config.logging.format == "json"
    )
    observer = Observer(log, Metrics(), world.wall_ms)

    offers_at = Path(config.handover.socket) if config.handover.socket else None
    offer = Offer(offers_at, world.listening) if offers_at is not None else None
    proxy = Proxy(config, world, observer, environ, offer=offer, start_worker=start_child)
    proxy.resources = machine_resources(
        Path(config.store.path).parent if not config.store.is_postgres else Path(".")
    )

    async def serve(stop: trio.Event) -> None:
        settle_memory()
        world.inherit(passed_by_service_manager(environ, os.getpid()))
        predecessor = await take_over(offers_at) if is_successor and offers_at is not None else None
        if predecessor is not None:
            world.inherit(predecessor.listening)
            log.info("taking_over", sockets=len(predecessor.listening))
            await predecessor.wait_released(config.limits.shutdown_grace_s + RELEASE_TIMEOUT_S)
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(proxy.run, stop))
            for host, port in world.drop_inherited():
                log.info("listener_dropped", host=host, port=port, why="the configuration no longer has it")
            if predecessor is not None:
                await predecessor.serving()

    def read_again() -> Reloaded:
        with proxy.service.reloading():
            try:
                found = load_proxy_config(path, environ)
            except ConfigError as error:
                log.error("reload_refused", problems=str(error), kept="the last good configuration")
                return Reloaded(problems=str(error).splitlines())
            return proxy.reload(found)

    proxy.read_again = read_again
    return _run(serve, log, read_again, proxy.halt)


def run_node(path: str, handlers: str, environ: Mapping[str, str], forget_registry: bool = False) -> int:
    """`fairlead node --config FILE [--handlers MODULE:NODE]`."""
    try:
        config = load_node_config(path, environ)
    except ConfigError as error:
        return _refused(path, error)
    where = handlers or config.handlers
    try:
        node = _load_handlers(where) if where else Node()
    except Exception as error:
        given = "--handlers" if handlers else f"{path}: handlers"
        print(f"{given} {where}: cannot be loaded: {error}", file=sys.stderr)
        ours = (
            isinstance(error, ModuleNotFoundError) and error.name == where.partition(":")[0].partition(".")[0]
        )
        if ours:
            print(f"it is looked for in {os.getcwd()} and in what is installed", file=sys.stderr)
        elif not isinstance(error, LookupError | TypeError):
            traceback.print_exc()
        return EXIT_CONFIG
    if problems := clashes(config, node.handlers):
        return _refused(path, ConfigError(problems))
    world = RealWorld()
    log = Log(
        StderrSink(), world.wall_ms, config.server_id, config.logging.level,
        as_json=config.logging.format == "json",
    )  # fmt: skip
    observer = Observer(log, Metrics(), world.wall_ms)

    process = NodeProcess(config, node, world, observer, environ, forget_registry=forget_registry)

    async def serve(stop: trio.Event) -> None:
        settle_memory()
        await process.run(stop)

    def reload() -> None:
        with process.service.reloading():
            _reload(path, environ, log, load_node_config, process.reload)

    return _run(serve, log, reload)


def _refused(path: str, error: ConfigError) -> int:
    print(f"{path}: configuration refused, nothing was started\n{error}", file=sys.stderr)
    return EXIT_CONFIG


def _load_handlers(where: str) -> Node:
    module_name, _, attribute = where.partition(":")
    if not attribute:
        raise LookupError("write package.module:attribute, e.g. my_mod:node")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as people expect of `module:attribute`
    module = importlib.import_module(module_name)
    found = getattr(module, attribute, None)
    if found is None:
        raise LookupError(f"{module_name} has no attribute {attribute!r}")
    if not isinstance(found, Node):
        raise LookupError(f"{module_name}.{attribute} is not a fairlead.backend.Node")
    return found


def _reload(
    path: str,
    environ: Mapping[str, str],
    log: Log,
    load: Callable[[str, Mapping[str, str]], NodeConfig],
    take_secrets: Callable[[NodeConfig], None],
) -> None:
    """SIGHUP: read and check a node's whole configuration again; what can change while running changes."""
    try:
        config = load(path, environ)
    except ConfigError as error:
        log.error("reload_refused", problems=str(error), kept="the last good configuration")
        return
    log.set_level(config.logging.level)
    applied = f"logging.level={config.logging.level}, and secrets as is said next"
    log.info("reloaded", applied=applied, restart="every other key needs a restart")
    take_secrets(config)


def _run(
    serve: Serve, log: Log, reload: Callable[[], object], on_usr1: Callable[[], object] | None = None
) -> int:
    raise_file_limit()
    status = EXIT_STOPPED
    try:
        trio.run(run_until_signalled, serve, reload, on_usr1)
    except BaseExceptionGroup as group:
        status = _report(group, log)
    except (ProxyStartRefused, NodeStartRefused, HandoverFailed) as error:
        log.error("start_refused", detail=str(error))
        status = EXIT_FAILED
    except Exception as error:
        status = _report(error, log)
    finally:
        log.close()
    return status


def _report(error: BaseException, log: Log) -> int:
    refused = _find(error, (ProxyStartRefused, NodeStartRefused, HandoverFailed))
    if refused is not None:
        log.error("start_refused", detail=str(refused))
        return EXIT_FAILED
    if _find(error, (KeyboardInterrupt,)) is not None:
        return EXIT_STOPPED
    log.error("crashed", error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
    return EXIT_FAILED


def _find(error: BaseException, kinds: tuple[type[BaseException], ...]) -> BaseException | None:
    """The first exception of these kinds inside a group."""
    if isinstance(error, kinds):
        return error
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            found = _find(inner, kinds)
            if found is not None:
                return found
    return None
