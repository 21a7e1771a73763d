"""Pure. Which commands are privileged, and what the audit trail is told of a run of one.

On the journey between planning and acceptance: the event travels in the run and is written in the transaction that
accepts it. Arguments are kept as the command's schema allows: secrets redacted, free-form ones as a hash.
"""

from __future__ import annotations

import msgspec

from fairlead.protocol.messages import Identity
from fairlead.protocol.registry import Descriptor, Flag
from fairlead.protocol.schema import audited
from fairlead.proxy.dispatch.approvals import asked_for
from fairlead.proxy.dispatch.submit import Planned, SubmitLimits
from fairlead.proxy.store.records import AuditEvent


def is_privileged(descriptor: Descriptor) -> bool:
    """It asks for a permission, or for somebody's approval."""
    return bool(descriptor.permission or descriptor.flags & Flag.REQUIRES_APPROVAL)


def guarded(
    planned: Planned, caller: Identity, bounds: SubmitLimits, address: str = "", why: str = ""
) -> Planned:
    """The submission with its event, and waiting for approval, as its command asks for either; else as it is."""
    planned = with_event(planned, caller, address, why)
    run = asked_for(planned.run, planned.item, caller, bounds.approvals, address, why)
    return planned if run is planned.run else msgspec.structs.replace(planned, run=run)


def with_event(planned: Planned, caller: Identity, address: str = "", why: str = "") -> Planned:
    """The submission with its event, where its command is privileged; else as it is. Its run's id tells a repetition
    of it: a run is accepted once."""
    descriptor, run = planned.item.descriptor, planned.run
    if not is_privileged(descriptor):
        return planned
    count = len(run.children) or 1
    detail = {
        "command": run.command, "target": run.target, "effect": run.effect, "permission": descriptor.permission,
        "args": audited(descriptor.parameters, msgspec.json.decode(run.args_json)),
        "digest": planned.item.digest.hex(),
    }  # fmt: skip
    event = AuditEvent(
        "privileged_dispatch", run.accepted_at_ms, caller.principal, run.tenant, run.run_id, count, count, 0, detail,
        run.correlation_id, caller.auth, address, why, id=f"run:{run.run_id}",
    )  # fmt: skip
    return msgspec.structs.replace(planned, run=msgspec.structs.replace(run, event=event))
