"""Pure. The registry that the proxy owns: who may announce what, and what changed since when.

A publisher: it says nothing before it was loaded, and every change is durable (`save`, performed by
`control.Control`) before any node hears of it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from fairlead.protocol.reasons import Reason, Reject
from fairlead.protocol.registry import Item, Position, Registry, build, decode_item

CHANGES_KEPT_MAX: Final = 256
RESERVED_NAMESPACE: Final = "fairlead"  # of what proxies execute themselves


@dataclass(frozen=True, slots=True)
class Change:
    """One step of the registry: from a position to the next."""

    base: Position
    registry: Registry
    upserts: tuple[Item, ...]
    removals: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Announced:
    """What became of an announcement: (name, reason, detail) for what was refused; what it changes, if so."""

    accepted: tuple[Item, ...]
    refused: tuple[tuple[str, Reason, str], ...]
    change: Change | None


class RegistryOwner:
    """The registry in force and its recent steps."""

    def __init__(self, registry: Registry, sources: Mapping[str, str]) -> None:
        self.registry = registry
        self.sources = dict(sources)  # name -> who announced it
        self._steps: OrderedDict[int, Change] = OrderedDict()  # by the generation they start from

    @property
    def position(self) -> Position:
        return self.registry.position

    def announce(self, node_id: str, granted: Collection[str], raws: Iterable[bytes]) -> Announced:
        """Judge a node's descriptors one by one: a bad one never spoils the others."""
        accepted: list[Item] = []
        refused: list[tuple[str, Reason, str]] = []
        upserts: dict[str, Item] = {}
        for raw in raws:
            item = decode_item(raw)
            if isinstance(item, Reject):
                refused.append(("?", item.reason, item.detail))
                continue
            name, version = item.descriptor.name, item.descriptor.version
            standing = upserts.get(name) or self.registry.get(name)
            if item.descriptor.namespace == RESERVED_NAMESPACE:
                refused.append(
                    (name, Reason.NAMESPACE_NOT_GRANTED, "it is the proxy's own, whoever is granted it")
                )
            elif item.descriptor.namespace not in granted:
                detail = f"{node_id} is granted: {', '.join(sorted(granted)) or 'nothing'}"
                refused.append((name, Reason.NAMESPACE_NOT_GRANTED, detail))
            elif item.descriptor.runs_on != "node":
                refused.append(
                    (name, Reason.DESCRIPTOR_INVALID, "a node may only announce what runs on nodes")
                )
            elif standing is None or version > standing.descriptor.version:
                upserts[name] = item
                accepted.append(item)
            elif item.digest == standing.digest:
                accepted.append(item)
            elif version == standing.descriptor.version:
                by = self.sources.get(name, node_id)
                detail = f"version {version} stands as announced by {by}, and differs"
                refused.append((name, Reason.DESCRIPTOR_CONFLICT, detail))
            else:
                detail = f"version {version}, but {standing.descriptor.version} stands"
                refused.append((name, Reason.DESCRIPTOR_STALE, detail))
        change = self.plan(tuple(upserts.values()), ()) if upserts else None
        if isinstance(change, Reject):
            refused.extend((name, change.reason, change.detail) for name in upserts)
            kept = tuple(item for item in accepted if item.descriptor.name not in upserts)
            return Announced(kept, tuple(refused), None)
        return Announced(tuple(accepted), tuple(refused), change)

    def plan(self, upserts: tuple[Item, ...], removals: tuple[str, ...]) -> Change | Reject:
        """The next step, not yet in force."""
        at = self.position
        after = self.registry.with_changes(at.fleet_id, at.epoch, at.generation + 1, upserts, removals)
        if isinstance(after, Reject):
            return after
        return Change(at, after, upserts, removals)

    def adopt(self, change: Change, source: str) -> None:
        """The change is durable: it is in force."""
        assert change.base == self.position, "changes are made one at a time"
        self.registry = change.registry
        for item in change.upserts:
            self.sources[item.descriptor.name] = source
        for name in change.removals:
            self.sources.pop(name, None)
        self._steps[change.base.generation] = change
        while len(self._steps) > CHANGES_KEPT_MAX:
            self._steps.popitem(last=False)

    def replace(self, newer: RegistryOwner) -> None:
        """Another proxy of the fleet published: what it made durable is in force here too. Our steps end before it."""
        self.registry, self.sources = newer.registry, newer.sources
        self._steps.clear()

    def is_behind(self, held: Position) -> bool:
        """Whether somebody holds a later registry of the same fleet and epoch than ours."""
        now = self.position
        return (held.fleet_id, held.epoch) == (now.fleet_id, now.epoch) and held.generation > now.generation

    def since(self, held: Position) -> Change | None:
        """All steps from `held` to now as one, or None where only a snapshot will do."""
        now = self.position
        if (held.fleet_id, held.epoch) != (now.fleet_id, now.epoch) or held.generation >= now.generation:
            return None
        upserts: dict[str, Item] = {}
        removals: dict[str, None] = {}
        for generation in range(held.generation, now.generation):
            step = self._steps.get(generation)
            if step is None or (generation == held.generation and step.base != held):
                return None
            for name in step.removals:
                upserts.pop(name, None)
                removals[name] = None
            for item in step.upserts:
                removals.pop(item.descriptor.name, None)
                upserts[item.descriptor.name] = item
        return Change(held, self.registry, tuple(upserts.values()), tuple(removals))


def restore(
    fleet_id: str, epoch: int, generation: int, descriptors: Mapping[str, tuple[bytes, str]]
) -> RegistryOwner | Reject:
    """The owner from what the store holds; a row that cannot be read refuses the start rather than vanish."""
    items: dict[str, Item] = {}
    for name, (canonical, _) in descriptors.items():
        item = decode_item(canonical)
        if isinstance(item, Reject):
            return Reject(item.reason, f"stored descriptor {name}: {item.detail}")
        if item.descriptor.name != name:
            return Reject(Reason.DESCRIPTOR_INVALID, f"stored descriptor {name} calls itself otherwise")
        items[name] = item
    built = build(fleet_id, epoch, generation, items)
    if isinstance(built, Reject):
        return built
    return RegistryOwner(built, {name: source for name, (_, source) in descriptors.items()})
