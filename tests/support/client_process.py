"""An application as a process of its own, for tests that kill it: submits adds over a client link until it is ended.

    python -m tests.support.client_process CLIENT_ID SECRET_FILE LOG ADDRESS [ADDRESS ...]

Every line of LOG is written at once: `accepted RUN_ID`, `ended RUN_ID STATUS REASON`, `refused REASON`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from fairlead.client import Ended, Refused, Submit, open_client

IN_FLIGHT = 8


async def main(client_id: str, secret_file: str, log_path: str, *addresses: str) -> None:
    with open(log_path, "a", buffering=1) as log:
        async with open_client(
            addresses, client_id=client_id, secret=Path(secret_file).read_text()
        ) as client:

            async def write_ends() -> None:
                async for ended in client.results():
                    assert isinstance(ended, Ended)
                    print(f"ended {ended.run_id} {ended.status} {ended.reason}", file=log)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(write_ends)
                while True:
                    batch = [Submit("demo:add", {"key": "apples", "amount": 1})] * IN_FLIGHT
                    for run in await client.submit_many(batch):
                        if isinstance(run, Refused):
                            print(f"refused {run.reason}", file=log)
                        else:
                            print(f"accepted {run.run_id}", file=log)
                    await trio.sleep(0.05)


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
