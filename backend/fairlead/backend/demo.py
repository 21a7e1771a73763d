"""The demo's mod: a few commands that show each effect, and a small real app for clients to reach.

`fairlead node --handlers fairlead.backend.demo:node`. Ports of the app come from DEMO_HTTP_PORT and
DEMO_GAME_PORT; without them only the commands are served.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import AsyncIterator
from html import escape

import trio

from fairlead.backend.context import Context, Transaction
from fairlead.backend.handlers import Background, Node, TransientFailure
from fairlead.protocol.reasons import Reason
from fairlead.runtime.http.message import Request, Response, json_response, problem, text_response
from fairlead.runtime.http.server import HttpLimits, serve_connection, serve_listener
from fairlead.runtime.streams import ByteStream

node = Node()
announcements: deque[str] = deque(maxlen=20)
CONNECTIONS_MAX = 4_096
LINE_BYTES_MAX = 4_096
GREETING_AFTER_S = 0.1


@node.command("demo:echo", effect="idempotent")
async def echo(ctx: Context, text: str = "") -> dict[str, object]:
    "Return what was given."
    return {"text": text, "node": ctx.node_id}


@node.command("demo:sleep", effect="idempotent", timeout_s=60)
async def sleep(ctx: Context, ms: int) -> dict[str, object]:
    "Wait, then say for how long."
    await trio.sleep(ms / 1000)
    return {"slept_ms": ms, "node": ctx.node_id}


@node.command("demo:fail", effect="idempotent")
async def fail(ctx: Context, transient: bool = False, message: str = "asked to fail") -> None:
    "Fail, for good or only for now."
    if transient:
        raise TransientFailure(message)
    raise RuntimeError(message)


@node.command("demo:add", effect="transactional")
async def add(ctx: Context, key: str, amount: int) -> dict[str, object]:
    "Add to a counter of this node; exactly once, whatever is killed meanwhile."

    def effect(db: Transaction) -> dict[str, object]:
        db.execute("CREATE TABLE IF NOT EXISTS demo_counters (key TEXT PRIMARY KEY, total INTEGER NOT NULL)")
        db.execute(
            "INSERT INTO demo_counters (key, total) VALUES (?, ?)"
            " ON CONFLICT (key) DO UPDATE SET total = total + excluded.total",
            (key, amount),
        )
        (total,) = db.execute("SELECT total FROM demo_counters WHERE key = ?", (key,)).fetchone()
        return {"key": key, "total": total, "node": ctx.node_id}

    return await ctx.transaction(effect)


@node.command("demo:total", effect="transactional")
async def total(ctx: Context, key: str) -> dict[str, object]:
    "Read a counter of this node."

    def read(db: Transaction) -> dict[str, object]:
        db.execute("CREATE TABLE IF NOT EXISTS demo_counters (key TEXT PRIMARY KEY, total INTEGER NOT NULL)")
        row = db.execute("SELECT total FROM demo_counters WHERE key = ?", (key,)).fetchone()
        return {"key": key, "total": row[0] if row else 0, "node": ctx.node_id}

    return await ctx.transaction(read)


@node.command("demo:reset", effect="transactional", requires_approval=True)
async def reset(ctx: Context, key: str) -> dict[str, object]:
    "Set a counter of this node back to zero; waits until somebody else approves."

    def forget(db: Transaction) -> dict[str, object]:
        db.execute("CREATE TABLE IF NOT EXISTS demo_counters (key TEXT PRIMARY KEY, total INTEGER NOT NULL)")
        row = db.execute("SELECT total FROM demo_counters WHERE key = ?", (key,)).fetchone()
        db.execute("DELETE FROM demo_counters WHERE key = ?", (key,))
        return {"key": key, "was": row[0] if row else 0, "node": ctx.node_id}

    return await ctx.transaction(forget)


@node.command("demo:announce", effect="once")
async def announce(ctx: Context, message: str) -> dict[str, object]:
    "Show a message on this node's page. Send it to `all`."
    announcements.appendleft(message)
    ctx.log.info("announcement", message=message)
    return {"announced": message, "node": ctx.node_id}


# -- the app behind the proxy


@node.background
async def serve_app(background: Background) -> None:
    """The HTTP app, where DEMO_HTTP_PORT says so."""
    port = int(os.environ.get("DEMO_HTTP_PORT", "0"))
    if not port:
        return
    world, observer = background.world, background.observer
    listener = await world.listen_tcp("127.0.0.1", port)
    limits = HttpLimits(body_bytes_max=64 * 1024 * 1024)

    async def handle(request: Request) -> Response:
        return await answer(background, request)

    async def serve(stream: ByteStream) -> None:
        await serve_connection(stream, handle, limits, world, observer, server="app")

    await serve_listener(listener, serve, observer, connections_max=CONNECTIONS_MAX, name="app")


async def answer(background: Background, request: Request) -> Response:
    """The app's pages."""
    match request.path:
        case "/":
            return text_response(page(background.node_id), content_type="text/html; charset=utf-8")
        case "/whoami":
            return json_response({
                "node": background.node_id,
                "you": request.header("x-forwarded-for") or request.peer_host,
                "via": request.header("via"),
                "correlation_id": request.header("x-correlation-id"),
            })  # fmt: skip
        case "/echo":
            digest = hashlib.sha256(request.body).hexdigest()
            return json_response({
                "method": request.method, "bytes": len(request.body), "sha256": digest, "query": request.query,
            })  # fmt: skip
        case "/clock":
            return Response(200, [("content-type", "text/plain")], stream=clock(background))
        case _:
            return problem(Reason.ROUTE_UNKNOWN, request.path, request.correlation_id)


async def clock(background: Background) -> AsyncIterator[bytes]:
    """Five lines, one every 200 ms: shows that bodies stream."""
    for _ in range(5):
        yield f"{background.node_id} {background.world.wall_ms()}\n".encode()
        await trio.sleep(0.2)


def page(node_id: str) -> str:
    items = "".join(f"<li>{escape(each)}</li>" for each in announcements) or "<li><i>none yet</i></li>"
    return (
        "<!doctype html><meta charset=utf-8><title>Fairlead demo</title>"
        "<style>body{font:16px system-ui;max-width:40rem;margin:3rem auto;padding:0 1rem}</style>"
        f"<h1>Served by {escape(node_id)}</h1><p>You came through the proxy. Stop this node and reload: "
        "another one answers.</p><h2>Announcements</h2><ul>"
        f"{items}</ul><p>Send one: <code>fairlead ctl dispatch demo:announce message=hello --target all</code></p>"
    )


@node.background
async def serve_game(background: Background) -> None:
    """A line-echo game, where DEMO_GAME_PORT says so."""
    port = int(os.environ.get("DEMO_GAME_PORT", "0"))
    if not port:
        return
    listener = await background.world.listen_tcp("127.0.0.1", port)
    await serve_listener(
        listener, lambda stream: play(background.node_id, stream), background.observer,
        connections_max=CONNECTIONS_MAX, name="game",
    )  # fmt: skip


async def play(node_id: str, stream: ByteStream) -> None:
    """Greets, then answers every line with itself until the player half-closes. A Minecraft client is told that this is
    no server for it: its first packet comes at once, and its second byte is 0."""
    held = b""
    with trio.move_on_after(GREETING_AFTER_S):
        held = await stream.receive_some(LINE_BYTES_MAX)
    if held[1:2] == b"\0":
        text = json.dumps(
            {"text": f"You were led to {node_id[:20]}. This demo has no Minecraft server."}
        ).encode()
        data = bytes([0, len(text)]) + text  # the disconnect of the login state; both lengths are below 128
        return await stream.send_all(bytes([len(data)]) + data)
    await stream.send_all(f"welcome to {node_id}; say something\n".encode())
    *lines, held = held.split(b"\n")
    for line in lines:
        await stream.send_all(node_id.encode() + b": " + line + b"\n")
    while data := await stream.receive_some(LINE_BYTES_MAX):
        *lines, held = (held + data).split(b"\n")
        for line in lines:
            await stream.send_all(node_id.encode() + b": " + line + b"\n")
        if len(held) > LINE_BYTES_MAX:
            await stream.send_all(b"that line is too long\n")
            return
    await stream.send_all(b"bye\n")
