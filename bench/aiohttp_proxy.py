"""The peer: a minimal reverse proxy on aiohttp, as its documentation would have one write it.

`python -m bench.aiohttp_proxy PORT UPSTREAM_PORT`.
"""

from __future__ import annotations

import sys

import aiohttp
from aiohttp import web

HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "proxy-authorization"}


async def session(app: web.Application):
    app["session"] = aiohttp.ClientSession(
        auto_decompress=False, connector=aiohttp.TCPConnector(limit=0), skip_auto_headers=("User-Agent",)
    )
    yield
    await app["session"].close()


async def forward(request: web.Request) -> web.StreamResponse:
    headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP}
    headers["X-Forwarded-For"] = request.remote or ""
    headers["Via"] = "1.1 peer"
    body = request.content if request.can_read_body else None
    url = f"http://127.0.0.1:{sys.argv[2]}{request.raw_path}"
    async with request.app["session"].request(request.method, url, headers=headers, data=body) as answer:
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP}
        response = web.StreamResponse(status=answer.status, headers=kept)
        await response.prepare(request)
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
        return response


def main() -> None:
    app = web.Application()
    app.cleanup_ctx.append(session)
    app.router.add_route("*", "/{path:.*}", forward)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)


if __name__ == "__main__":
    main()
