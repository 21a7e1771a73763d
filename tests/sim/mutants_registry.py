"""The registry: who announces, what is published, what a node takes for true."""

from __future__ import annotations

from typing import Final

from tests.sim.mutation import Mutant

REGISTRY: Final = "proxy/fairlead/proxy/control/registry.py"
FLEET: Final = "proxy/fairlead/proxy/store/fleet.py"
CONTROL: Final = "proxy/fairlead/proxy/control/control.py"
NODES: Final = "proxy/fairlead/proxy/control/nodes.py"
MIRROR: Final = "backend/fairlead/backend/mirror.py"
LINK: Final = "backend/fairlead/backend/link.py"
INBOX: Final = "backend/fairlead/backend/inbox.py"
SYNC: Final = "proxy/fairlead/proxy/control/sync.py"

TEST_REGISTRY_OWNER: Final = "tests/unit/proxy/test_registry_owner.py"
TEST_STORE_CONTRACT_UPKEEP: Final = "tests/shell/test_store_contract_upkeep.py"
TEST_DISPATCH_FAULTS: Final = "tests/shell/test_dispatch_faults.py"
TEST_NODES: Final = "tests/unit/proxy/test_nodes.py"
TEST_MIRROR: Final = "tests/unit/backend/test_mirror.py"
TEST_INBOX: Final = "tests/shell/test_inbox.py"
TEST_SYNC: Final = "tests/unit/proxy/test_sync.py"
TEST_HOSTILE_NODE: Final = "tests/shell/test_hostile_node.py"

MUTANTS: Final = (
    Mutant(
        "namespace_not_checked",
        "A node with any grant announces commands in every namespace.",
        REGISTRY,
        "if item.descriptor.namespace not in granted:",
        "if not granted:",
        (f"{TEST_REGISTRY_OWNER}::test_a_bad_descriptor_never_spoils_the_others",),
    ),
    Mutant(
        "same_version_overwrites",
        "A differing descriptor replaces the one that stands under the same version.",
        REGISTRY,
        "elif standing is None or version > standing.descriptor.version:",
        "elif standing is None or version >= standing.descriptor.version:",
        (f"{TEST_REGISTRY_OWNER}::test_a_bad_descriptor_never_spoils_the_others",),
    ),
    Mutant(
        "delta_by_generation_alone",
        "A delta is made for whoever has the right generation, whatever they hold.",
        REGISTRY,
        "if step is None or (generation == held.generation and step.base != held):",
        "if step is None:",
        (f"{TEST_REGISTRY_OWNER}::test_from_elsewhere_only_a_snapshot_will_do",),
    ),
    Mutant(
        "unreadable_row_vanishes",
        "A stored descriptor that cannot be read is left out, and so removed from every node.",
        REGISTRY,
        'return Reject(item.reason, f"stored descriptor {name}: {item.detail}")',
        "continue",
        (f"{TEST_REGISTRY_OWNER}::test_a_row_that_cannot_be_read_refuses_the_start",),
    ),
    Mutant(
        "publisher_starts_empty",
        "A restarted proxy begins without commands and wipes its nodes.",
        FLEET,
        """\
        {row[0]: (bytes(row[1]), row[2]) for row in good},
""",
        """\
        {row[0]: (bytes(row[1]), row[2]) for row in good[:0]},
""",
        (f"{TEST_STORE_CONTRACT_UPKEEP}::test_the_registry_is_kept_with_its_generation[sqlite inline]",),
    ),
    Mutant(
        "two_publishers_of_one_generation",
        "Two proxies may publish different registries under one generation.",
        FLEET,
        """\
        "UPDATE meta SET value = ? WHERE key = 'registry_generation' AND value = ?",
        (str(generation), str(generation - 1)),
""",
        """\
        "UPDATE meta SET value = ? WHERE key = 'registry_generation'",
        (str(generation),),
""",
        (
            f"{TEST_STORE_CONTRACT_UPKEEP}::test_of_two_proxies_that_publish_one_generation_one_is_told_that_it_lost[sqlite inline]",
        ),
    ),
    Mutant(
        "registry_in_force_before_durable",
        "A registry change is told to nodes before it is on disk.",
        CONTROL,
        """\
        now_ms = self.world.wall_ms()
        if not await self._store.save_registry(generation, upserts, change.removals, now_ms, event):
            if not await self._adopt_stored():  # neither may ours follow it, nor can it be followed
                raise Refused(
                    Reason.STORE_UNAVAILABLE, "the stored registry is another and cannot be adopted"
                )
            return False
        self.registry.adopt(change, source)
""",
        """\
        self.registry.adopt(change, source)
        await self._fan_out()
        await self._store.save_registry(generation, upserts, change.removals, self.world.wall_ms(), event)
""",
        (
            f"{TEST_DISPATCH_FAULTS}::test_a_stored_registry_that_cannot_be_followed_ends_a_removal_instead_of_looping",
        ),
    ),
    Mutant(
        "lost_link_forgets_the_node",
        "Losing a link clears what a node offers and holds.",
        NODES,
        """\
        self.running = self.waiting = 0
""",
        """\
        self.running = self.waiting = 0
        self.offers, self.sync = {}, NodeSync()
""",
        (f"{TEST_NODES}::test_losing_a_link_clears_nothing_but_the_load",),
    ),
    Mutant(
        "lost_link_clears_the_registry",
        "A node that loses its link forgets the commands it holds.",
        MIRROR,
        """\
        self._staging.pop(link, None)

    def _refusal""",
        """\
        self._staging.pop(link, None)
        self.registry = Registry(Position())

    def _refusal""",
        (f"{TEST_MIRROR}::test_a_snapshot_may_begin_again_in_the_middle_and_ends_with_its_link",),
    ),
    Mutant(
        "generation_goes_down",
        "An older snapshot rolls the registry back.",
        MIRROR,
        "if held.fleet_id and offered.precedes(held):",
        "if held.fleet_id and offered.epoch < held.epoch:",
        (f"{TEST_MIRROR}::test_an_old_snapshot_after_a_new_one_is_refused",),
    ),
    Mutant(
        "foreign_fleet_accepted",
        "The registry of another fleet replaces ours.",
        MIRROR,
        "if held.fleet_id and offered.fleet_id != held.fleet_id:",
        "if held.fleet_id and not offered.fleet_id:",
        (f"{TEST_MIRROR}::test_each_refusal_is_named_once_and_nothing_changes",),
    ),
    Mutant(
        "digest_of_a_snapshot_not_verified",
        "A snapshot is believed without computing its digest.",
        MIRROR,
        "if built.position != to:",
        "if built.position.generation != to.generation:",
        (f"{TEST_MIRROR}::test_each_refusal_is_named_once_and_nothing_changes",),
    ),
    Mutant(
        "digest_of_a_delta_not_verified",
        "A delta is believed without computing what it makes.",
        MIRROR,
        "if changed.position != to:",
        "if changed.position.generation != to.generation:",
        (f"{TEST_MIRROR}::test_a_missed_change_asks_for_a_snapshot_and_a_bad_snapshot_does_not",),
    ),
    Mutant(
        "registry_acked_before_durable",
        "A node acknowledges a registry that it has not stored.",
        LINK,
        """\
                position = effect.registry.position
""",
        """\
                position = effect.registry.position
                self._pump.send(self._mirror.adopt(effect.registry))
""",
        (f"{TEST_DISPATCH_FAULTS}::test_a_node_acknowledges_a_registry_only_once_it_is_on_its_disk",),
    ),
    Mutant(
        "half_a_registry_stored",
        "A whole snapshot is stored beside what was there before.",
        INBOX,
        """\
            if whole:
                db.execute("DELETE FROM registry_items")
""",
        "",
        (f"{TEST_INBOX}::test_the_registrys_copy_is_saved_whole_or_in_steps",),
    ),
    Mutant(
        "refused_generation_sent_for_ever",
        "A registry that a node refused is sent to it again and again.",
        SYNC,
        "self._refused_generation = (sent.epoch, sent.generation)",
        "self._refused_generation = None",
        (f"{TEST_SYNC}::test_what_was_refused_is_not_sent_again_until_something_newer_exists",),
    ),
    Mutant(
        "lost_push_never_noticed",
        "A heartbeat that shows an older registry changes nothing.",
        SYNC,
        "if self.held is None or self.sent is not None or claimed == self.held:",
        "if self.held is not None or self.sent is not None or claimed == self.held:",
        (f"{TEST_HOSTILE_NODE}::test_a_lost_push_is_healed_by_the_next_heartbeat",),
    ),
    Mutant(
        "pushes_overtake_each_other",
        "A change is sent while an earlier one is unanswered.",
        SYNC,
        """\
        if self.held is None or self.sent is not None:
            return []
        if self._refused""",
        """\
        if self.held is None:
            return []
        if self._refused""",
        (f"{TEST_SYNC}::test_while_a_push_is_unanswered_later_changes_wait_and_go_as_one",),
    ),
)
