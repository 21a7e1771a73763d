"""Clients moved between backends, commands that run on the proxy, and players' commands: a cluster in virtual time.

HTTP clients are real ones over the memory network. A game client is what its listener makes of one: a session with a
player's name, and what the listener asks when the client comes back.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from tests.support.memory_cluster import CONTROL, PROXY_TOML, Cluster, Script
from trio.testing import MockClock

from fairlead.backend import Node, Referral, ReferralRejected
from fairlead.protocol import messages as m
from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.edge.minecraft.host_token import split
from fairlead.proxy.edge.sessions import Session, SessionState
from fairlead.proxy.ops.contract import CONTRACT
from fairlead.proxy.transfer_desk import TransferDesk
from fairlead.runtime.http.message import Request, Response, json_response
from fairlead.runtime.http.server import HttpLimits, serve_connection, serve_listener

HTTP, GAME = 8080, 25565
TOML = PROXY_TOML.replace(
    """[[nodes]]
id = "alpha"
namespaces = ["t"]
[[nodes]]
id = "beta"
namespaces = ["t"]
""",
    f"""[[listeners]]
name = "web"
kind = "http"
port = {HTTP}
[[listeners]]
name = "raw"
kind = "tcp"
port = 7000
[[backends]]
id = "alpha"
host = "127.0.0.1"
port = 8081
namespaces = ["t"]
[[backends]]
id = "beta"
host = "127.0.0.1"
port = 8082
namespaces = ["t"]
[[backends]]
id = "gone"
host = "127.0.0.1"
port = 8083
[routing]
default_backend_id = "alpha"
[transfer]
host_suffix = "play.example"
port = {GAME}
timeout_ms = 10000
[players]
commands_max = 5
commands_window_ms = 10000
""",
)


class Game(Script):
    """Nodes whose server sends players as it is told, and can be told not to."""

    def __init__(self) -> None:
        super().__init__()
        self.referrals: list[Referral] = []
        self.rejecting = ""
        self.silent = False
        self.heard: list[tuple[str, str]] = []

    def node(self) -> Node:
        node = super().node()

        @node.on_refer
        async def refer(referral: Referral) -> None:
            self.referrals.append(referral)
            if self.silent:
                await trio.sleep_forever()
            if self.rejecting:
                raise ReferralRejected(self.rejecting)

        @node.command("t:whoami", effect="idempotent", player_only=True)
        async def whoami(ctx: Any) -> dict[str, str]:
            "Who plays."
            self.heard.append((ctx.identity.principal, ctx.node_id))
            return {"principal": ctx.identity.principal, "session": ctx.identity.session, "node": ctx.node_id}

        @node.command("t:relay", effect="idempotent")
        async def relay(ctx: Any) -> Any:
            "What a handler asks on behalf of the player that it runs for."
            return await ctx.player_command("t:whoami")

        return node


class Clients:
    """What listeners and nodes do in these tests, by hand."""

    def __init__(self, cluster: Cluster, game: Game) -> None:
        self.cluster, self.game = cluster, game
        traffic = cluster.proxy.traffic
        assert traffic is not None
        self.desk: TransferDesk = traffic.desk
        self.sessions = traffic.sessions

    def join(
        self, name: str, backend: str = "alpha", kind: str = "minecraft", peer: str = "192.0.2.7"
    ) -> Session:
        """A player that plays."""
        world = self.cluster.worlds["proxy"]
        session = self.sessions.open(world.new_id(), "raw", kind, peer, world.wall_ms())
        if kind == "minecraft":
            self.sessions.identify(session, name, "", 766)
        session.backend, session.state = backend, SessionState.PLAYING
        return session

    async def come_back(self, name: str, token: bytes, peer: str = "192.0.2.7") -> Any:
        """The same player, with a token: its new session, or why it is turned away."""
        world = self.cluster.worlds["proxy"]
        session = self.sessions.open(world.new_id(), "raw", "minecraft", peer, world.wall_ms())
        self.sessions.identify(session, name, "", 766)
        refused = await self.desk.arrived(session, token)
        if refused is not None:
            self.sessions.close(session)
            return refused
        return session

    def play(self, session: Session, backend: str = "") -> None:
        session.backend, session.state = backend or session.bound, SessionState.PLAYING
        self.desk.playing(session)

    async def referred(self, count: int = 1) -> Referral:
        await self.cluster.until(lambda: len(self.game.referrals) >= count)
        return self.game.referrals[count - 1]

    async def move(self, session: str, to: str, wait_s: int = 0) -> tuple[int, Any]:
        status, answer = await self.cluster.ask(
            "POST", f"/api/sessions/{session}/transfer", {"to": to}, wait_s
        )
        if status < 400:
            msgspec.convert(answer, CONTRACT["session_transfer"].types[status])
        else:
            assert Reason(answer["reason"]) in CONTRACT["session_transfer"].reasons
        return status, answer

    async def shown(self, session: str) -> Any:
        _, answer = await self.cluster.ask("GET", f"/api/sessions/{session}")
        msgspec.convert(answer, CONTRACT["session"].types[200])
        return answer


@pytest.fixture
async def clients(tmp_path: Path, nursery: trio.Nursery, autojump_clock: MockClock) -> Clients:
    cluster, game = Cluster(tmp_path, nursery), Game()
    cluster.proxy_toml, cluster.script = TOML, game
    await cluster.start()
    return Clients(cluster, game)


# -- transfers of players


async def test_a_player_is_moved_with_a_token_and_counts_as_moved_only_when_it_plays_there(
    autojump_clock: MockClock, clients: Clients
) -> None:
    ada = clients.join("ada")
    status, answer = await clients.move(ada.id, "beta")
    assert (status, answer["state"], answer["from"], answer["to"]) == (202, "ASKED", "alpha", "beta")
    referral = await clients.referred()
    assert (referral.player_name, referral.port, referral.session) == ("ada", GAME, ada.id)
    token, domain = split(referral.host)
    assert (token, domain) == (referral.token, "play.example")
    await trio.sleep(1)
    shown = await clients.shown(ada.id)
    assert (shown["state"], shown["backend"], shown["transfer"]["state"]) == (
        "TRANSFERRING",
        "alpha",
        "REFERRED",
    )
    clients.sessions.close(ada)
    back = await clients.come_back("ADA", token)
    assert (back.bound, back.previous_session) == ("beta", ada.id)
    assert (await clients.shown(back.id))["transfer"]["state"] == "ARRIVING"
    clients.play(back)
    shown = await clients.shown(back.id)
    assert (shown["state"], shown["node"], shown["previous_session"]) == ("PLAYING", "beta", ada.id)
    assert shown["transfer"]["state"] == "COMPLETED"
    assert set(shown["transfer"]["ms"]) == {"referred", "arriving", "completed"}
    again = await clients.come_back("ada", token)
    assert (again.reason, "over" in again.detail) == (Reason.TRANSFER_TOKEN_REJECTED, True)
    metrics = await clients.cluster.metrics()
    assert metrics['fairlead_transfers_total{kind="minecraft",result="COMPLETED"}'] == 1
    assert metrics["fairlead_transfers_pending"] == 0


async def test_a_referral_that_is_rejected_leaves_the_session_where_it_was(
    autojump_clock: MockClock, clients: Clients
) -> None:
    clients.game.rejecting = "the player is in a fight"
    ada = clients.join("ada")
    status, answer = await clients.move(ada.id, "beta", wait_s=5)
    assert (status, answer["reason"]) == (502, "REFERRAL_REJECTED")
    assert "in a fight" in answer["detail"]
    assert (ada.state, ada.backend, ada.transfer_id) == (SessionState.PLAYING, "alpha", "")
    refused = await clients.come_back("ada", clients.game.referrals[0].token)
    assert refused.reason is Reason.TRANSFER_TOKEN_REJECTED  # never downgraded to an ordinary login


async def test_a_client_that_does_not_come_back_has_failed_at_the_deadline(
    autojump_clock: MockClock, clients: Clients
) -> None:
    """Trap of the ancestor: a session that was counted as moved at once, and for ever."""
    ada = clients.join("ada")
    assert (await clients.move(ada.id, "beta"))[0] == 202
    await clients.referred()
    assert (await clients.move(ada.id, "beta"))[1]["reason"] == "PLAYER_NOT_READY"
    await trio.sleep(11)
    shown = await clients.shown(ada.id)
    assert (shown["state"], shown["backend"]) == ("PLAYING", "alpha")
    assert shown["transfer"]["reason"] == "TRANSFER_TIMEOUT"
    assert "did not come back" in shown["transfer"]["detail"]
    late = await clients.come_back("ada", clients.game.referrals[0].token)
    assert late.reason is Reason.TRANSFER_TOKEN_REJECTED
    clients.game.silent = True
    assert (await clients.move(ada.id, "beta", wait_s=15))[1]["reason"] in (
        "TRANSFER_TIMEOUT",
        "REFERRAL_REJECTED",
    )
    assert ada.state is SessionState.PLAYING


async def test_who_is_led_elsewhere_was_not_transferred(autojump_clock: MockClock, clients: Clients) -> None:
    ada = clients.join("ada")
    await clients.move(ada.id, "beta")
    back = await clients.come_back("ada", (await clients.referred()).token)
    clients.play(back, "alpha")
    transfer = (await clients.shown(back.id))["transfer"]
    assert (transfer["state"], transfer["reason"]) == ("FAILED", "BACKEND_UNAVAILABLE")
    bob = clients.join("bob")
    await clients.move(bob.id, "beta")
    back = await clients.come_back("bob", (await clients.referred(2)).token)
    clients.desk.turned_away(back, m_reject())
    assert (await clients.shown(bob.id))["transfer"]["detail"].startswith("BACKEND_TIMEOUT")


def m_reject() -> Any:
    from fairlead.protocol.reasons import Reject

    return Reject(Reason.BACKEND_TIMEOUT, "silence")


async def test_an_older_client_is_known_by_name_and_address(
    autojump_clock: MockClock, clients: Clients
) -> None:
    ada = clients.join("ada")
    await clients.move(ada.id, "beta")
    await clients.referred()
    assert (await clients.come_back("ada", b"", peer="192.0.2.66")).bound == ""
    assert (await clients.come_back("bob", b"")).bound == ""
    back = await clients.come_back("ada", b"")
    assert back.bound == "beta"
    clients.play(back)
    assert (await clients.shown(back.id))["transfer"]["state"] == "COMPLETED"
    assert (await clients.come_back("ada", b"")).bound == ""


async def test_a_token_is_good_for_one_player_once(autojump_clock: MockClock, clients: Clients) -> None:
    ada = clients.join("ada")
    await clients.move(ada.id, "beta")
    token = (await clients.referred()).token
    stranger = await clients.come_back("mallory", token)
    assert (stranger.reason, "another player's" in stranger.detail) == (Reason.TRANSFER_TOKEN_REJECTED, True)
    for index in (0, 3, 20, 40, 48, 55, len(token) - 1):
        bent = token[:index] + bytes((token[index] ^ 1,)) + token[index + 1 :]
        assert (await clients.come_back("ada", bent)).reason is Reason.TRANSFER_TOKEN_REJECTED
    assert isinstance(await clients.come_back("ada", token), Session)
    assert (await clients.come_back("ada", token)).detail == "it was used already"


async def test_every_refusal_in_its_order(autojump_clock: MockClock, clients: Clients) -> None:
    async def reason(session: Session, to: str) -> str:
        status, answer = await clients.move(session.id, to)
        assert status >= 400
        return str(answer["reason"])

    ada, raw = clients.join("ada"), clients.join("", kind="tcp")
    assert (await clients.move("nobody", "beta"))[1]["reason"] == "SESSION_UNKNOWN"
    assert await reason(ada, "nowhere") == "BACKEND_NOT_FOUND"
    assert await reason(ada, "ALPHA") == "ALREADY_CONNECTED"
    assert await reason(ada, "gone") == "BACKEND_STATUS_UNKNOWN"
    await clients.cluster.ask("POST", "/api/nodes/beta/drain")
    assert await reason(ada, "beta") == "BACKEND_UNAVAILABLE"
    await clients.cluster.ask("POST", "/api/nodes/beta/undrain")
    assert await reason(raw, "beta") == "TRANSFER_UNSUPPORTED"
    clients.cluster.control.nodes.record("beta").labels["game_protocol"] = "765"
    assert await reason(ada, "beta") == Reason.BACKEND_VERSION_MISMATCH
    clients.cluster.control.nodes.record("beta").labels.clear()
    ada.state = SessionState.CONNECTING
    assert await reason(ada, "beta") == "PLAYER_NOT_READY"
    ada.state = SessionState.PLAYING
    clients.cluster.stops["beta"].set()
    await trio.sleep(30)
    assert await reason(ada, "beta") == "BACKEND_UNAVAILABLE"
    clients.cluster.stops["alpha"].set()
    await trio.sleep(30)
    await clients.cluster.start_node("beta")
    await trio.sleep(1)
    assert await reason(ada, "beta") == Reason.REQUEST_SEND_FAILED
    assert (await clients.cluster.ask("POST", f"/api/sessions/{ada.id}/transfer", b"{}"))[1][
        "reason"
    ] == "BODY_MALFORMED"


async def test_a_proxy_without_a_control_channel_transfers_nobody(
    autojump_clock: MockClock, tmp_path: Path, nursery: trio.Nursery
) -> None:
    cluster = Cluster(tmp_path, nursery)
    cluster.proxy_toml = TOML.replace("[messaging]", "[messaging]\nenabled = false")
    await cluster.start_proxy()
    alone = Clients(cluster, Game())
    status, answer = await alone.move(alone.join("ada").id, "beta")
    assert (status, answer["reason"]) == (409, Reason.CONTROL_PLANE_UNAVAILABLE)


# -- the command


async def test_the_command_runs_on_the_proxy_and_tells_the_end(
    autojump_clock: MockClock, clients: Clients
) -> None:
    ada, cluster = clients.join("ada"), clients.cluster
    _, registry = await cluster.ask("GET", "/api/commands")
    (transfer,) = [each for each in registry["commands"] if each["name"] == "fairlead:transfer"]
    assert (transfer["runs_on"], transfer["announced_by"]) == ("proxy", "proxy:proxy")
    assert transfer["nodes"][0].startswith("proxy:")
    body = {"command": "fairlead:transfer", "args": {"session": ada.id, "to": "beta", "reason": "balance"}}
    status, accepted = await cluster.ask("POST", "/api/dispatch", body)
    assert status == 202
    back = await clients.come_back("ada", (await clients.referred()).token)
    clients.play(back)
    (run,) = await cluster.ended(accepted)
    assert (run["status"], run["result"]["new_session"]) == ("COMPLETED", back.id)
    clients.game.rejecting = "no"
    body["args"] = {"session": back.id, "to": "alpha"}
    _, failed = await cluster.ask("POST", "/api/dispatch", body, wait_s=5)
    assert (failed["status"], failed["reason"]) == ("FAILED", "REFERRAL_REJECTED")
    assert len(await cluster.dead_letters()) == 1
    body["args"] = {"session": "nobody", "to": "alpha"}
    status, refused = await cluster.ask("POST", "/api/dispatch", body)
    assert (status, refused["reason"]) == (404, "SESSION_UNKNOWN")
    for target, reason in (("alpha", "TARGET_INVALID"), (f"session:{back.id}", None)):
        args = {"session": back.id, "to": "nowhere"}
        _, answer = await cluster.ask(
            "POST", "/api/dispatch", {**body, "args": args, "target": target}, wait_s=5
        )
        assert answer["reason"] == (reason or "BACKEND_NOT_FOUND")
    _, trail = await cluster.ask("GET", "/api/ops/reliability/audit?limit=50")
    actions = [event["action"] for event in trail["events"]]
    assert actions.count("privileged_dispatch") == 3


async def test_a_cancelled_transfer_is_called_off(autojump_clock: MockClock, clients: Clients) -> None:
    ada, cluster = clients.join("ada"), clients.cluster
    body = {"command": "fairlead:transfer", "args": {"session": ada.id, "to": "beta"}}
    _, accepted = await cluster.ask("POST", "/api/dispatch", body)
    token = (await clients.referred()).token
    assert (await cluster.ask("POST", f"/api/runs/{accepted['run_id']}/cancel"))[0] == 202
    (run,) = await cluster.ended(accepted)
    assert run["status"] == "CANCELLED"
    metrics = await cluster.metrics()
    assert metrics['fairlead_run_reject_total{reason="RUN_CANCELLED"}'] == 1, "counted by who is told, once"
    assert ada.state is SessionState.PLAYING
    assert (await clients.come_back("ada", token)).reason is Reason.TRANSFER_TOKEN_REJECTED


async def test_a_proxy_that_dies_in_the_middle_of_its_own_command(
    autojump_clock: MockClock, clients: Clients
) -> None:
    """As for a node: what had begun is not begun again, and nobody claims to know how it went."""
    ada, cluster = clients.join("ada"), clients.cluster
    body = {"command": "fairlead:transfer", "args": {"session": ada.id, "to": "beta"}}
    _, accepted = await cluster.ask("POST", "/api/dispatch", body)
    await clients.referred()
    cluster.scopes["proxy"].cancel()
    await trio.sleep(1)
    await cluster.start_proxy()
    (run,) = await cluster.ended(accepted)
    assert (run["status"], run["reason"]) == ("FAILED", "OUTCOME_UNKNOWN")
    assert len(clients.game.referrals) == 1
    restarted = Clients(cluster, clients.game)
    refused = await restarted.come_back("ada", clients.game.referrals[0].token)
    assert refused.reason is Reason.TRANSFER_TOKEN_REJECTED


async def test_a_store_that_fails_at_the_end_does_not_make_it_run_twice(
    autojump_clock: MockClock, clients: Clients
) -> None:
    ada, cluster = clients.join("ada"), clients.cluster
    body = {"command": "fairlead:transfer", "args": {"session": ada.id, "to": "beta"}}
    _, accepted = await cluster.ask("POST", "/api/dispatch", body)
    back = await clients.come_back("ada", (await clients.referred()).token)
    cluster.worlds["proxy"].store_fails = True
    clients.play(back)
    await trio.sleep(40)
    cluster.worlds["proxy"].store_fails = False
    (run,) = await cluster.ended(accepted)
    assert (run["status"], len(clients.game.referrals)) == ("COMPLETED", 1)


async def test_no_node_announces_in_the_proxys_namespace(autojump_clock: MockClock, clients: Clients) -> None:
    """Not even one that the configuration grants it."""
    from fairlead.protocol.registry import Descriptor, canonical_item

    owner = clients.cluster.control.registry
    raw = canonical_item(Descriptor("fairlead:transfer", version=9)).canonical
    announced = owner.announce("alpha", frozenset({"fairlead"}), [raw])
    assert [each[1] for each in announced.refused] == [Reason.NAMESPACE_NOT_GRANTED]


async def test_a_run_for_the_node_of_a_session(autojump_clock: MockClock, clients: Clients) -> None:
    ada, bob = clients.join("ada", "alpha"), clients.join("bob", "beta")
    for session, node in ((ada, "alpha"), (bob, "beta")):
        ended = await clients.cluster.submit("t:step", "x", wait_s=5, target=f"session:{session.id}")
        assert ended["node_id"] == node
    ada.backend = ""
    args = {"name": "x"}
    for target, reason in ((f"session:{ada.id}", "PLAYER_NOT_READY"), ("session:7", "SESSION_UNKNOWN")):
        body = {"command": "t:step", "args": args, "target": target}
        assert (await clients.cluster.ask("POST", "/api/dispatch", body))[1]["reason"] == reason


# -- HTTP


async def test_an_http_clients_next_request_goes_where_it_was_transferred(
    autojump_clock: MockClock, clients: Clients, nursery: trio.Nursery
) -> None:
    for name, port in (("alpha", 8081), ("beta", 8082)):
        await nursery.start(serve_app, clients.cluster, name, port)
    stream = await clients.cluster.worlds["client"].connect_tcp("127.0.0.1", HTTP)

    async def ask() -> str:
        await stream.send_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        answer = b""
        while b"}" not in answer:
            more = await stream.receive_some(65_536)
            assert more, "the proxy closed"
            answer += more
        return str(json.loads(answer.partition(b"\r\n\r\n")[2])["node"])

    assert [await ask(), await ask()] == ["alpha", "alpha"]
    _, listed = await clients.cluster.ask("GET", "/api/sessions?kind=http&node=alpha")
    (session,) = listed["sessions"]
    assert (listed["total"], listed["next"], session["listener"]) == (1, "", "web")
    assert session["state"] == "AUTHENTICATED"  # between two requests: it is moved all the same
    status, moved = await clients.move(session["id"], "beta")
    assert (status, moved["state"]) == (200, "COMPLETED")
    assert await ask() == "beta"
    assert (await clients.move(session["id"], "beta"))[1]["reason"] == "ALREADY_CONNECTED"
    stream.close()


async def test_a_client_is_moved_only_among_the_backends_of_its_route(
    autojump_clock: MockClock, tmp_path: Path, nursery: trio.Nursery
) -> None:
    """Or it would be told to go where its next request is not led."""
    cluster = Cluster(tmp_path, nursery)
    cluster.proxy_toml = TOML + '[[routes]]\nid = "app"\nhost = "app.test"\nbackends = ["alpha"]\n'
    await cluster.start()
    clients = Clients(cluster, Game())
    await nursery.start(serve_app, cluster, "alpha", 8081)
    stream = await cluster.worlds["client"].connect_tcp("127.0.0.1", HTTP)
    await stream.send_all(b"GET / HTTP/1.1\r\nhost: app.test\r\n\r\n")
    assert await stream.receive_some(65_536)
    (session,) = (await cluster.ask("GET", "/api/sessions?kind=http"))[1]["sessions"]
    assert session["route"] == "app"
    assert (await clients.move(session["id"], "beta"))[1]["reason"] == "BACKEND_NOT_FOUND"
    stream.close()


async def serve_app(cluster: Cluster, name: str, port: int, *, task_status: trio.TaskStatus[None]) -> None:
    world = cluster.worlds[name]
    listener = await world.listen_tcp("127.0.0.1", port)

    async def handle(request: Request) -> Response:
        return json_response({"node": name})

    async def serve(stream: Any) -> None:
        await serve_connection(stream, handle, HttpLimits(), world, cluster.observer)

    await serve_listener(
        listener, serve, cluster.observer, connections_max=10, name="app", task_status=task_status
    )


async def test_sessions_in_pages(autojump_clock: MockClock, clients: Clients) -> None:
    joined = {clients.join(f"p{number}").id: f"p{number}" for number in range(5)}
    made = sorted(joined)
    ask = clients.cluster.ask
    _, first = await ask("GET", "/api/sessions?kind=minecraft&limit=2")
    msgspec.convert(first, CONTRACT["sessions"].types[200])
    assert (first["total"], [each["id"] for each in first["sessions"]]) == (5, made[:2])
    _, second = await ask("GET", f"/api/sessions?kind=minecraft&limit=3&after={first['next']}")
    assert ([each["id"] for each in second["sessions"]], second["next"]) == (made[2:], "")
    _, one = await ask(
        "GET", f"/api/sessions?player={joined[made[3]].upper()}&state=playing&address=192.0.2.7&backend=alpha"
    )
    assert [each["id"] for each in one["sessions"]] == [made[3]]
    for query in ("limit=0", "state=nope", "colour=blue"):
        assert (await ask("GET", f"/api/sessions?{query}"))[1]["reason"] == "QUERY_INVALID"
    assert (await ask("GET", "/api/sessions/nobody"))[1]["reason"] == "SESSION_UNKNOWN"
    _, status = await ask("GET", "/status")
    assert status["sessions"]["by_state"] == {"PLAYING": 5}
    assert [each["id"] for each in status["sessions"]["oldest"]] == list(joined)


# -- players' commands


async def test_a_player_enters_a_command_on_its_node(autojump_clock: MockClock, clients: Clients) -> None:
    ada, asks = clients.join("ada"), clients.cluster.nodes["alpha"].asks
    assert asks is not None
    who = await asks.player_command("t:whoami", session=ada.id)
    assert who == {"principal": "player:ada", "session": ada.id, "node": "alpha"}
    assert (await asks.player_command("t:step", {"name": "by-name"}, player="ADA")) == "by-name"
    assert (await asks.player_command("t:relay", session=ada.id)) == who
    run = (await clients.cluster.ask("GET", "/api/runs?command=t:step"))[1]["runs"][0]
    assert (run["status"], run["target"]) == ("COMPLETED", f"session:{ada.id}")


async def test_players_are_believed_only_from_the_node_that_has_them(
    autojump_clock: MockClock, clients: Clients
) -> None:
    ada = clients.join("ada")
    alpha, beta = (clients.cluster.nodes[name].asks for name in ("alpha", "beta"))
    assert alpha is not None
    assert beta is not None

    async def reason(asks: Any, command: str = "t:whoami", **who: str) -> Reason:
        with pytest.raises(Refused) as caught:
            await asks.player_command(command, **who)
        return caught.value.reason

    assert await reason(beta, session=ada.id) is Reason.PLAYER_NOT_ON_NODE
    assert await reason(beta, player="ada") is Reason.PLAYER_NOT_ON_NODE
    assert await reason(alpha, session=ada.id, player="bob") is Reason.PLAYER_NOT_ON_NODE
    assert await reason(alpha, player="nobody") is Reason.SESSION_UNKNOWN
    assert await reason(alpha, "t:nothing", session=ada.id) is Reason.COMMAND_UNKNOWN
    assert await reason(alpha, "t:step", session=ada.id) is Reason.ARGUMENTS_INVALID
    ada.state = SessionState.TRANSFERRING
    assert await reason(alpha, session=ada.id) is Reason.PLAYER_NOT_READY
    assert clients.game.heard == []
    body = {"command": "t:whoami", "target": "any"}
    status, answer = await clients.cluster.ask("POST", "/api/dispatch", body)
    assert (status, answer["reason"]) == (403, "PLAYER_ONLY")
    with pytest.raises(ValueError, match="name the session"):
        await alpha.player_command("t:whoami")


async def test_a_player_may_not_do_what_it_was_not_granted(
    autojump_clock: MockClock, clients: Clients
) -> None:
    ada, asks = clients.join("ada"), clients.cluster.nodes["alpha"].asks
    assert asks is not None
    with pytest.raises(Refused) as caught:
        await asks.player_command("fairlead:transfer", {"session": ada.id, "to": "beta"}, session=ada.id)
    assert caught.value.reason is Reason.PERMISSION_DENIED
    for _ in range(4):
        await asks.player_command("t:whoami", session=ada.id)
    with pytest.raises(Refused) as caught:
        await asks.player_command("t:whoami", session=ada.id)
    assert caught.value.reason is Reason.PLAYER_RATE_LIMITED
    await trio.sleep(10)
    await asks.player_command("t:whoami", session=ada.id)


async def test_a_player_that_may_moves_itself_and_nobody_else(
    autojump_clock: MockClock, tmp_path: Path, nursery: trio.Nursery
) -> None:
    cluster, game = Cluster(tmp_path, nursery), Game()
    cluster.proxy_toml = TOML.replace("[players]", '[players]\nscopes = ["dispatch", "fairlead.transfer"]')
    cluster.script = game
    await cluster.start()
    clients = Clients(cluster, game)
    ada, bob, asks = clients.join("ada"), clients.join("bob"), cluster.nodes["alpha"].asks
    assert asks is not None
    with pytest.raises(Refused) as caught:
        await asks.player_command("fairlead:transfer", {"session": bob.id, "to": "beta"}, session=ada.id)
    assert caught.value.reason is Reason.PERMISSION_DENIED
    moved: list[Any] = []
    async with trio.open_nursery() as asking:

        async def ask() -> None:
            args = {"session": ada.id, "to": "beta"}
            moved.append(await asks.player_command("fairlead:transfer", args, session=ada.id))

        asking.start_soon(ask)
        clients.play(await clients.come_back("ada", (await clients.referred()).token))
    assert (moved[0]["state"], moved[0]["by"]) == ("COMPLETED", "player:ada")
    assert [each.player_name for each in game.referrals] == ["ada"]


async def test_a_players_command_survives_a_broken_link(autojump_clock: MockClock, clients: Clients) -> None:
    """It is said again over the next link under the same id, and is one run."""
    ada, asks = clients.join("ada"), clients.cluster.nodes["alpha"].asks
    assert asks is not None
    told: list[Any] = []
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            told.append(await asks.player_command("t:once", {"name": "n", "ms": 3_000}, session=ada.id))

        nursery.start_soon(ask)
        await clients.cluster.until(lambda: clients.game.began)
        clients.cluster.network.cut(CONTROL)
    assert (told, clients.game.began) == (["n"], ["n"])


async def test_what_a_node_says_of_a_transfer_that_is_not_its_own(
    autojump_clock: MockClock, clients: Clients
) -> None:
    ada = clients.join("ada")
    clients.game.silent = True
    await clients.move(ada.id, "beta")
    referral = await clients.referred()
    link = clients.cluster.control.links["beta"]
    clients.desk.referred(link, m.Referred(referral.transfer_id, True))
    assert (await clients.shown(ada.id))["transfer"]["state"] == "ASKED"
    clients.desk.referred(link, m.Referred("made-up", True))
    rejects = (await clients.cluster.ask("GET", "/status"))[1]["rejects"]
    assert rejects["control"]["FOREIGN_STATEMENT"] == 1
