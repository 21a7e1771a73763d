"""What an application uses to submit commands to a fleet, over the same secured channel that nodes use.

    from fairlead.client import RunFailed, open_client

    async with open_client("proxy-1:25570", client_id="shop", secret=SECRET) as client:
        run = await client.submit("demo:add", {"key": "apples", "amount": 3})   # durable when it returns
        total = await run.wait(timeout_s=10)

The modules follow a submission: `client` (what the application calls) -> `book` (what is under way, and what follows
from what the proxy says) -> `link` (the link to a proxy, dialled again when it breaks).
"""

from fairlead.client.book import Submit
from fairlead.client.client import Client, open_client
from fairlead.client.run import Ended, Results, Run, RunFailed
from fairlead.protocol.reasons import Reason, Refused

__all__ = [
    "Client",
    "Ended",
    "Reason",
    "Refused",
    "Results",
    "Run",
    "RunFailed",
    "Submit",
    "open_client",
]
