"""A backend node: what the author of handlers uses, and the process that runs them.

    from fairlead.backend import Node

    node = Node()

    @node.command("lobby:kick", effect="once", timeout_s=5)
    async def kick(ctx, player: str, reason: str = ""):
        "Remove a player from this lobby."

The other modules follow the command's journey on a node: link -> intake -> inbox -> executor -> inbox -> link,
and the registry's: link -> mirror -> inbox file -> link.
"""

from fairlead.backend.context import Context
from fairlead.backend.handlers import Node, TransientFailure
from fairlead.backend.referral import Referral, ReferralRejected
from fairlead.backend.signature import Secret

__all__ = ["Context", "Node", "Referral", "ReferralRejected", "Secret", "TransientFailure"]
