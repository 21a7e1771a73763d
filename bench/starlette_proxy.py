"""The peer: a reverse proxy on Starlette and httpx, as their documentation would have one write it.

`uvicorn bench.starlette_proxy:app`, with UPSTREAM_PORT in the environment; in an environment of its own.
"""

from __future__ import annotations

import contextlib
import os

import httpx
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "proxy-authorization"}
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


@contextlib.asynccontextmanager
async def lifespan(app: Starlette):
    base = f"http://127.0.0.1:{os.environ['UPSTREAM_PORT']}"
    async with httpx.AsyncClient(base_url=base, limits=httpx.Limits(), timeout=60, trust_env=False) as client:
        app.state.client = client
        yield


async def forward(request: Request) -> StreamingResponse:
    client: httpx.AsyncClient = request.app.state.client
    headers = [(name, value) for name, value in request.headers.raw if name.decode().lower() not in HOP]
    headers.append((b"x-forwarded-for", (request.client.host if request.client else "").encode()))
    headers.append((b"via", b"1.1 peer"))
    url = httpx.URL(path=request.url.path, query=request.url.query.encode())
    has_body = "content-length" in request.headers or "transfer-encoding" in request.headers
    content = request.stream() if has_body else None
    answer = await client.send(
        client.build_request(request.method, url, headers=headers, content=content), stream=True
    )
    kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP}
    return StreamingResponse(
        answer.aiter_raw(), answer.status_code, kept, background=BackgroundTask(answer.aclose)
    )


app = Starlette(routes=[Route("/{path:path}", forward, methods=METHODS)], lifespan=lifespan)
