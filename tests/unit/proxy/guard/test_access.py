"""Roles, scopes and permissions as tables: what is allowed, and everything beside it is not."""

from __future__ import annotations

import pytest

from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.guard.access import (
    GIVEN_SCOPES,
    NOBODY,
    Openings,
    Scope,
    covers,
    may,
    permits,
    require,
    scope_problem,
    widens,
)
from fairlead.proxy.ops.endpoints import ENDPOINTS


def caller(role: str = "", *scopes: str) -> Identity:
    return Identity("someone", "service", (role,) if role else (), scopes)


HELD = [
    ("viewer", (), "read"),
    ("operator", (), "read dispatch replay operate approve"),
    ("admin", (), "read dispatch replay operate approve admin"),
    ("operator", ("operate",), "replay operate"),
    ("operator", ("replay",), "replay"),
    ("viewer", ("replay", "operate"), ""),
    ("operator", ("dispatch",), "dispatch"),
    ("viewer", ("dispatch", "read"), "read"),
    ("viewer", ("admin",), ""),
    ("operator", ("admin",), ""),
    ("admin", ("admin",), "admin"),
    ("operator", ("kick.players",), ""),
    ("", (), ""),
    ("", ("admin", "read"), ""),
    ("root", (), ""),
    ("Admin", (), ""),
]


@pytest.mark.parametrize(("role", "scopes", "held"), HELD)
def test_a_scope_narrows_a_role_and_never_widens_it(role: str, scopes: tuple[str, ...], held: str) -> None:
    assert [each for each in GIVEN_SCOPES if may(caller(role, *scopes), Scope(each))] == held.split()


def test_nobody_may_what_is_open_or_signed_by_having_a_role():
    for scope in (Scope.OPEN, Scope.SIGNED):
        assert not may(caller("admin"), scope)


@pytest.mark.parametrize(
    ("who", "reason"), [(NOBODY, Reason.UNAUTHENTICATED), (caller("viewer"), Reason.SCOPE_MISSING)]
)
def test_who_proved_nothing_is_told_so_and_who_may_not_is_told_that(who: Identity, reason: Reason) -> None:
    with pytest.raises(Refused) as refused:
        require(who, Scope.OPERATE)
    assert refused.value.reason is reason


COVERS = [
    ("kick.players", "kick.players", True),
    ("kick.*", "kick.players", True),
    ("kick.*", "kick.players.all", True),
    ("kick.*", "kick", False),
    ("kick.*", "kick.", True),
    ("kick.*", "kickoff.match", False),  # a prefix without its dot would include this
    ("kick*", "kick.players", False),
    ("*", "kick.players", False),
    (".*", ".players", False),
    ("kick", "kick.players", False),
    ("kick.players", "kick.*", False),
    ("KICK.*", "kick.players", False),
]


@pytest.mark.parametrize(("granted", "permission", "included"), COVERS)
def test_a_wildcard_needs_its_dot(granted: str, permission: str, included: bool) -> None:
    assert covers(granted, permission) is included


PERMITS = [
    ("operator", (), "", True),
    ("operator", (), "kick.players", True),
    ("admin", (), "kick.players", True),
    ("viewer", (), "kick.players", False),
    ("viewer", (), "", False),
    ("operator", ("dispatch",), "", True),
    ("operator", ("dispatch",), "kick.players", False),
    ("operator", ("dispatch", "kick.*"), "kick.players", True),
    ("operator", ("kick.*",), "kick.players", False),  # the permission without the right to dispatch
    ("operator", ("dispatch", "kick.players"), "kick.all", False),
    ("viewer", ("dispatch", "kick.*"), "kick.players", False),
]


@pytest.mark.parametrize(("role", "scopes", "permission", "permitted"), PERMITS)
def test_the_permission_that_a_command_names(
    role: str, scopes: tuple[str, ...], permission: str, permitted: bool
) -> None:
    assert permits(caller(role, *scopes), permission) is permitted


GIVEN = [
    ("read", "viewer", True),
    ("dispatch", "viewer", False),
    ("admin", "operator", False),
    ("admin", "admin", True),
    ("open", "admin", False),
    ("signed", "admin", False),
    ("kick.players", "operator", True),
    ("kick.*", "operator", True),
    ("*", "operator", False),
    (".*", "operator", False),
    ("kick*", "operator", False),
    ("kick.*.x", "operator", False),
    ("Kick.players", "operator", False),
    ("kick players", "operator", False),
    ("", "operator", False),
    ("a." * 40 + "a", "operator", False),
]


@pytest.mark.parametrize(("scope", "role", "accepted"), GIVEN)
def test_which_scopes_a_key_may_be_given(scope: str, role: str, accepted: bool) -> None:
    assert (scope_problem(scope, role) == "") is accepted


WIDENS = [
    (caller("admin"), "admin", (), ""),
    (caller("admin"), "viewer", ("read",), ""),
    (caller("admin", "admin", "read"), "viewer", ("read",), ""),
    (caller("admin", "admin", "read"), "operator", ("dispatch",), "dispatch"),
    (caller("admin", "admin", "read"), "viewer", (), "every permission of commands"),
    (caller("admin", "admin"), "admin", (), "approve"),
    (caller("admin", "admin", "dispatch", "kick.*"), "operator", ("dispatch", "kick.players"), ""),
    (caller("admin", "admin", "dispatch", "kick.players"), "operator", ("dispatch", "kick.*"), "kick.*"),
    (caller("operator"), "admin", (), "admin"),
]


@pytest.mark.parametrize(("giver", "role", "scopes", "more"), WIDENS)
def test_nobody_gives_more_than_they_have(
    giver: Identity, role: str, scopes: tuple[str, ...], more: str
) -> None:
    assert widens(giver, role, scopes) == more


OPENED = [
    (Openings(), True, "127.0.0.1", False, ()),
    (Openings(reads=True), True, "127.0.0.1", False, ("viewer",)),
    (Openings(reads=True), True, "::1", False, ("viewer",)),
    (Openings(reads=True), True, "::1%lo", False, ("viewer",)),
    (Openings(reads=True), False, "127.0.0.1", False, ()),
    (Openings(reads=True), True, "10.0.0.7", False, ()),
    (Openings(reads=True), True, "localhost", False, ()),  # a name is no address
    (Openings(reads=True), True, "127.0.0.1", True, ()),  # the clients' port is for everybody
    (Openings(reads=True, nothing=True), True, "127.0.0.1", False, ()),
    (Openings(everybody=True), False, "127.0.0.1", False, ("viewer",)),
    (Openings(everybody=True, writes=True), False, "127.0.0.1", False, ("operator",)),
    (Openings(everybody=True, writes=True), False, "127.0.0.1", True, ("operator",)),
    (Openings(everybody=True, writes=True, nothing=True), True, "127.0.0.1", False, ()),
    (Openings(writes=True), True, "127.0.0.1", False, ()),
]


@pytest.mark.parametrize(("openings", "open_read", "peer", "public", "roles"), OPENED)
def test_what_is_opened_to_somebody_without_credentials(
    openings: Openings, open_read: bool, peer: str, public: bool, roles: tuple[str, ...]
) -> None:
    found = openings.anonymous(open_read=open_read, peer_host=peer, public=public)
    assert (found.roles, found.subject_type, found.auth) == (roles, "anonymous", "open")


def test_what_changes_something_or_shows_a_key_is_open_to_nobody():
    for endpoint in ENDPOINTS:
        if endpoint.method != "GET":
            assert endpoint.scope not in (Scope.OPEN, Scope.READ), endpoint
            assert not endpoint.open_read, endpoint
        if endpoint.open_read:
            assert endpoint.scope is Scope.READ, endpoint
        if "operator-keys" in endpoint.path:
            assert endpoint.scope is Scope.ADMIN, endpoint
