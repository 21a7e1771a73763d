"""`fairlead edge-worker`: one of the processes that serve clients for a proxy, which starts them (`[edge] workers`)."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import trio

from fairlead.proxy.edge.workers import bootstrap
from fairlead.proxy.edge.workers.worker import run_worker
from fairlead.runtime.child import inherited
from fairlead.runtime.log import Log, StderrSink
from fairlead.runtime.metrics import Metrics
from fairlead.runtime.observer import Observer
from fairlead.runtime.process import (
    EXIT_CONFIG,
    EXIT_FAILED,
    EXIT_STOPPED,
    leave_signals_to_parent,
    settle_memory,
)
from fairlead.runtime.world import RealWorld, raise_file_limit


def run_edge_worker(arguments: Sequence[str]) -> int:
    """Serve until the proxy closes the link. The arguments are the numbers of its two sockets."""
    leave_signals_to_parent()
    try:
        link, connections = map(int, arguments)
        told = bootstrap.read(sys.stdin.buffer.read())
        stream, receiver = inherited(link, connections)
    except (ValueError, OSError) as error:
        print(f"edge-worker is started by `fairlead proxy`, see [edge] workers: {error}", file=sys.stderr)
        return EXIT_CONFIG
    world = RealWorld()
    log = Log(StderrSink(), world.wall_ms, f"proxy/{told.identity}", told.log_level, as_json=told.log_as_json)
    observer = Observer(log, Metrics(), world.wall_ms)
    raise_file_limit()

    async def serve() -> str:
        settle_memory()
        return await run_worker(told, world, observer, stream, receiver)

    try:
        why = trio.run(serve)
    except BaseException as error:
        log.error("edge_worker_crashed", error=_first(error))
        return EXIT_FAILED
    else:
        log.debug("edge_worker_ended", why=why)
        return EXIT_STOPPED
    finally:
        log.close()


def _first(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
