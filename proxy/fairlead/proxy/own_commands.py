"""The proxy's own commands, in the namespace that no node may announce in: what they take, and what they do.

Part of the registry like any other; executed by `dispatch.own_place`.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

from fairlead.protocol.reasons import Reason, Refused
from fairlead.protocol.registry import Descriptor, Effect, Item, canonical_item
from fairlead.protocol.schema import Parameter
from fairlead.proxy.dispatch.fleet import PROXY_PLACE
from fairlead.proxy.dispatch.own_place import OwnCall, OwnHandler
from fairlead.proxy.dispatch.submit import PLAYER_AUTH
from fairlead.proxy.transfer_desk import TransferDesk

TRANSFER_PERMISSION: Final = "fairlead.transfer"
TRANSFER: Final = canonical_item(
    Descriptor(
        "fairlead:transfer",
        version=1,
        description="Move a connected client to another backend.",
        usage="fairlead:transfer session= to= [reason=]",
        parameters=(
            Parameter("session", "string"),
            Parameter("to", "string"),
            Parameter("reason", "string", required=False, default_json='""'),
        ),
        permission=TRANSFER_PERMISSION,
        effect=Effect.ONCE.value,  # a client that was referred twice would be torn between two backends
        timeout_ms=120_000,
        runs_on="proxy",
    )
)


def own_commands(desk: TransferDesk) -> dict[str, tuple[Item, OwnHandler]]:
    """Every command of the proxy with what it does."""

    async def transfer(call: OwnCall) -> Any:
        session = call.args["session"]
        if call.identity.auth == PLAYER_AUTH and session != call.identity.session:
            detail = f"{call.identity.principal} may move session {call.identity.session}, not another's"
            raise Refused(Reason.PERMISSION_DENIED, detail)
        done = await desk.move(session, call.args["to"], call.identity.principal, call.args.get("reason", ""))
        return done.row()

    return {TRANSFER.descriptor.name: (TRANSFER, transfer)}


def tag_of(name: str) -> str:
    """What stands before the ids of a proxy's sessions."""
    return hashlib.blake2b(name.encode(), person=b"fairlead-proxy", digest_size=4).hexdigest()


def place_of(tag: str) -> str:
    """The proxy with a tag as a place for runs."""
    return f"{PROXY_PLACE}{tag}"
