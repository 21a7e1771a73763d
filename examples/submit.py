"""An application that submits commands to the fleet. It works against the running demo (`make run`):

    .venv/bin/python examples/submit.py

It holds its own key (`fairlead secret client-key ID`), not the fleet's secret, and is listed under [[clients]] of the
proxy's configuration. If the proxy dies or restarts meanwhile it links again and goes on where it was.
"""

import os
from pathlib import Path

import trio

from fairlead.client import Refused, RunFailed, Submit, open_client


def demo() -> dict[str, str]:
    """What the demo wrote down for its application: DEMO_CONTROL, DEMO_CLIENT_ID and DEMO_CLIENT_KEY."""
    path = Path(os.environ.get("FAIRLEAD_DATA", "data")) / "demo.env"
    if not path.exists():
        raise SystemExit(
            f"{path} is not there: start the demo (make run), or say where it is: FAIRLEAD_DATA=DIR"
        )
    return dict(line.split("=", 1) for line in path.read_text().splitlines())


async def main() -> None:
    held = demo()
    async with open_client(
        held["DEMO_CONTROL"], client_id=held["DEMO_CLIENT_ID"], client_key=held["DEMO_CLIENT_KEY"]
    ) as client:
        # Accepted durably when submit returns; whoever is killed from here on, the run ends exactly once.
        run = await client.submit("demo:add", {"key": "pears", "amount": 3}, target="lobby-1")
        print(run.run_id, await run.wait(timeout_s=10))

        # Many at once: one message, one commit; and their ends as they come.
        with client.results() as results:
            runs = await client.submit_many(Submit("demo:echo", {"text": f"hello {n}"}) for n in range(100))
            accepted = [each for each in runs if not isinstance(each, Refused)]
            completed = 0
            async for ended in results:
                completed += ended.completed
                accepted.pop()
                if not accepted:
                    break
        print(f"{completed} of {len(runs)} completed")

        try:
            await client.call("demo:fail", {"message": "on purpose"})
        except RunFailed as failed:
            print(f"{failed.status} {failed.reason}: {failed.detail}")  # a dead letter now: fairlead ctl dlq


if __name__ == "__main__":
    trio.run(main)
