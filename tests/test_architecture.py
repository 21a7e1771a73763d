"""The rules of ARCHITECTURE.md, executed: who may import whom, what is pure, where the world comes in."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from fairlead.protocol.reasons import Reason

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "protocol": ROOT / "protocol/fairlead/protocol",
    "runtime": ROOT / "runtime/fairlead/runtime",
    "backend": ROOT / "backend/fairlead/backend",
    "proxy": ROOT / "proxy/fairlead/proxy",
    "client": ROOT / "client/fairlead/client",
    "testing": ROOT / "testing/fairlead/testing",
    "cli": ROOT / "runtime/fairlead/cli",
}
# Package -> fairlead packages it may import, beside itself.
ALLOWED = {
    "protocol": set(),
    "runtime": {"protocol"},
    "backend": {"protocol", "runtime"},
    "proxy": {"protocol", "runtime"},
    "client": {"protocol", "runtime"},
    "testing": {"protocol", "runtime", "backend", "proxy", "client"},
    "cli": {"protocol", "runtime", "backend", "proxy", "client"},
}
# Inside the proxy: part -> parts it may import, beside itself. `app` may import all; nothing imports `app`.
PROXY_ALLOWED = {
    "store": set(),
    "edge": set(),
    "control": {"store"},  # only the store's interface
    "dispatch": {"store", "control"},  # links and node records, handed in by app
    "guard": {"store"},
    "ops": {"store", "control", "dispatch", "edge", "config", "guard", "rollout", "telemetry"},
    "reloading": {"config"},
    "rollout": {"store"},
    "telemetry": {"store"},
    "telemetry_assembly": {"config", "control", "dispatch", "store", "telemetry"},
    "siblings": {"store", "control", "dispatch"},
    "audit_trail": {"store"},
    "secret_reload": {"audit_trail", "store", "control", "dispatch", "ops", "guard"},
    "config": {
        "config_edge",
        "config_game",
        "config_rollout",
        "config_routes",
        "config_sections",
        "config_tls",
    },
    "config_rollout": set(),
    "config_game": {"config_edge"},
    "config_tls": {"config_edge"},
    "config_edge": set(),
    "config_routes": {"config_edge"},
    "config_sections": {"config_rollout"},
    "dispatch_assembly": {"config", "control", "dispatch", "guard"},
    "edge_assembly": {"config", "config_edge", "edge"},
    "edge_crew": {"config", "control", "edge"},
    "steering": {"config", "control", "dispatch", "edge", "rollout", "store"},
    "transfer_desk": {"control", "edge", "store"},
    "own_commands": {"dispatch", "transfer_desk"},
    "client_traffic": {
        "config",
        "control",
        "dispatch",
        "edge",
        "dispatch_assembly",
        "edge_assembly",
        "own_commands",
        "store",
        "transfer_desk",
    },
    "assembly": {
        "dispatch_assembly",
        "audit_trail",
        "client_traffic",
        "secret_reload",
        "store",
        "edge",
        "control",
        "dispatch",
        "ops",
        "config",
        "siblings",
        "steering",
        "guard",
        "rollout",
        "reloading",
        "telemetry",
        "telemetry_assembly",
    },
    "app": {
        "audit_trail",
        "client_traffic",
        "secret_reload",
        "store",
        "edge",
        "control",
        "dispatch",
        "ops",
        "config",
        "assembly",
        "dispatch_assembly",
        "edge_assembly",
        "edge_crew",
        "siblings",
        "guard",
        "rollout",
        "reloading",
        "telemetry",
        "telemetry_assembly",
    },
}
# What others may know of the store: what it does, the values that cross its border, and the pure rules of approvals.
STORE_BORDER = {
    "interface", "records", "approval_records", "approval_rules", "rollout_records", "telemetry_records",
}  # fmt: skip
# Files that compute: no waiting, no clock, no randomness, no files, no sockets.
PURE = [
    *(f"protocol/fairlead/protocol/{path.name}" for path in PACKAGES["protocol"].glob("*.py")),
    "backend/fairlead/backend/batches.py",
    "backend/fairlead/backend/console_line.py",
    "backend/fairlead/backend/decisions.py",
    "backend/fairlead/backend/gate/settings.py",
    "backend/fairlead/backend/mirror.py",
    "client/fairlead/client/book.py",
    "backend/fairlead/backend/retention.py",
    "backend/fairlead/backend/signature.py",
    "proxy/fairlead/proxy/control/admission.py",
    "proxy/fairlead/proxy/control/nodes.py",
    "proxy/fairlead/proxy/control/registry.py",
    "proxy/fairlead/proxy/control/reports.py",
    "proxy/fairlead/proxy/control/settings.py",
    "proxy/fairlead/proxy/control/sync.py",
    "proxy/fairlead/proxy/dispatch/approvals.py",
    "proxy/fairlead/proxy/dispatch/callback_ladder.py",
    "proxy/fairlead/proxy/dispatch/circuit.py",
    "proxy/fairlead/proxy/dispatch/fleet.py",
    "proxy/fairlead/proxy/dispatch/privileged.py",
    "proxy/fairlead/proxy/dispatch/replay.py",
    "proxy/fairlead/proxy/dispatch/retry.py",
    "proxy/fairlead/proxy/dispatch/submit.py",
    "proxy/fairlead/proxy/edge/address_sets.py",
    "proxy/fairlead/proxy/edge/admission.py",
    "proxy/fairlead/proxy/edge/arrival.py",
    "proxy/fairlead/proxy/edge/body.py",
    "proxy/fairlead/proxy/edge/client_hello.py",
    "proxy/fairlead/proxy/edge/pins.py",
    "proxy/fairlead/proxy/edge/forward_headers.py",
    "proxy/fairlead/proxy/edge/asked.py",
    "proxy/fairlead/proxy/edge/health.py",
    "proxy/fairlead/proxy/edge/node_drains.py",
    "proxy/fairlead/proxy/edge/pace.py",
    "proxy/fairlead/proxy/edge/paths.py",
    "proxy/fairlead/proxy/edge/retry_budget.py",
    "proxy/fairlead/proxy/edge/routes.py",
    "proxy/fairlead/proxy/edge/minecraft/address.py",
    "proxy/fairlead/proxy/edge/minecraft/host_token.py",
    "proxy/fairlead/proxy/edge/minecraft/legacy.py",
    "proxy/fairlead/proxy/edge/minecraft/opening.py",
    "proxy/fairlead/proxy/edge/minecraft/packets.py",
    "proxy/fairlead/proxy/edge/minecraft/players.py",
    "proxy/fairlead/proxy/edge/minecraft/remembered.py",
    "proxy/fairlead/proxy/edge/minecraft/status.py",
    "proxy/fairlead/proxy/edge/minecraft/turning_away.py",
    "proxy/fairlead/proxy/edge/minecraft/waiting_room.py",
    "proxy/fairlead/proxy/edge/minecraft/words.py",
    "proxy/fairlead/proxy/edge/routing.py",
    "proxy/fairlead/proxy/edge/sticky.py",
    "proxy/fairlead/proxy/edge/strategies.py",
    "proxy/fairlead/proxy/rollout/kill_switch.py",
    "proxy/fairlead/proxy/rollout/record.py",
    "proxy/fairlead/proxy/rollout/plan.py",
    "proxy/fairlead/proxy/edge/settings.py",
    "proxy/fairlead/proxy/edge/trace.py",
    "proxy/fairlead/proxy/edge/transfer_token.py",
    "proxy/fairlead/proxy/edge/transfers.py",
    "proxy/fairlead/proxy/edge/upgrade.py",
    "proxy/fairlead/proxy/edge/workers/bootstrap.py",
    "proxy/fairlead/proxy/edge/workers/config_codec.py",
    "proxy/fairlead/proxy/edge/workers/distribution.py",
    "proxy/fairlead/proxy/edge/workers/said.py",
    "proxy/fairlead/proxy/edge/workers/tally.py",
    "proxy/fairlead/proxy/reloading.py",
    "proxy/fairlead/proxy/rollout/analysis.py",
    "proxy/fairlead/proxy/rollout/dispatch_rollout.py",
    "proxy/fairlead/proxy/rollout/progress.py",
    "proxy/fairlead/proxy/rollout/sequential.py",
    "proxy/fairlead/proxy/telemetry/alerting.py",
    "proxy/fairlead/proxy/telemetry/alert_rules.py",
    "proxy/fairlead/proxy/telemetry/burn_rates.py",
    "proxy/fairlead/proxy/telemetry/readings.py",
    "proxy/fairlead/proxy/telemetry/samples.py",
    "proxy/fairlead/proxy/telemetry/slo.py",
    "proxy/fairlead/proxy/telemetry/telling.py",
    "proxy/fairlead/proxy/guard/modes.py",
    "proxy/fairlead/proxy/guard/nonces.py",
    "proxy/fairlead/proxy/guard/rates.py",
    "proxy/fairlead/proxy/guard/tenants.py",
    "proxy/fairlead/proxy/guard/access.py",
    "proxy/fairlead/proxy/guard/credentials.py",
    "proxy/fairlead/proxy/guard/key_set.py",
    "proxy/fairlead/proxy/guard/operator_keys.py",
    "proxy/fairlead/proxy/guard/tokens.py",
    "proxy/fairlead/proxy/guard/rotation.py",
    "proxy/fairlead/proxy/ops/replay_answers.py",
    "proxy/fairlead/proxy/ops/answers.py",
    "proxy/fairlead/proxy/ops/contract.py",
    "proxy/fairlead/proxy/ops/endpoints.py",
    "proxy/fairlead/proxy/ops/openapi.py",
    "proxy/fairlead/proxy/ops/page.py",
    "proxy/fairlead/proxy/ops/parity.py",
    "proxy/fairlead/proxy/store/approval_rules.py",
    "proxy/fairlead/proxy/store/postgres/placeholders.py",
    "proxy/fairlead/proxy/store/seals.py",
    "runtime/fairlead/cli/doctor/compare.py",
    "runtime/fairlead/cli/doctor/finding.py",
    "runtime/fairlead/cli/doctor/running.py",
    "runtime/fairlead/cli/drill/plan.py",
    "runtime/fairlead/cli/incident_checklist.py",
    "runtime/fairlead/cli/leaks.py",
    "runtime/fairlead/cli/toml_lines.py",
    "runtime/fairlead/runtime/addresses.py",
    "runtime/fairlead/runtime/request_signing.py",
    "runtime/fairlead/runtime/backoff.py",
    "runtime/fairlead/runtime/gcra.py",
    "runtime/fairlead/runtime/sketch.py",
    "runtime/fairlead/runtime/http/body.py",
    "runtime/fairlead/runtime/http/framing.py",
    "runtime/fairlead/runtime/http/head.py",
    "runtime/fairlead/runtime/http/message.py",
    "runtime/fairlead/runtime/metric_changes.py",
    "runtime/fairlead/runtime/posting.py",
    "runtime/fairlead/runtime/signing.py",
    "runtime/fairlead/runtime/strict_json.py",
]
IMPURE_MODULES = {
    "trio", "socket", "ssl", "time", "random", "secrets", "os", "sqlite3", "logging", "threading", "uuid",
    "subprocess", "select", "queue", "asyncio",
}  # fmt: skip
# The seam. Everything else takes a World.
WORLD_ONLY = {
    ("time", "time"), ("time", "time_ns"), ("time", "monotonic"), ("os", "urandom"), ("uuid", "uuid4"),
    ("socket", "socket"), ("socket", "create_connection"), ("datetime", "now"), ("trio", "open_tcp_stream"),
    ("trio", "open_tcp_listeners"), ("trio", "serve_tcp"),
}  # fmt: skip
WORLD_FILES = {
    "runtime/fairlead/runtime/world.py",
    "runtime/fairlead/runtime/child.py",  # a process and the sockets to it; never simulated
    "runtime/fairlead/runtime/handover.py",  # sockets between two processes of one machine; never simulated
    "proxy/fairlead/proxy/store/postgres/connection.py",  # libpq's sockets and their deadlines; never simulated
}
# Who starts processes: the seam's programs and the edge's workers. (And the command line, which does not serve.)
STARTING_FILES = {"runtime/fairlead/runtime/program.py", "runtime/fairlead/runtime/child.py"}
BANNED_NAMES = {"utils", "helpers", "helper", "manager", "impl", "common", "base", "misc"}


def sources(package: str) -> list[Path]:
    return sorted(PACKAGES[package].rglob("*.py"))


def every_source() -> list[Path]:
    return [path for package in PACKAGES for path in sources(package)]


def imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """(module, line, only for type checking)."""
    tree = ast.parse(path.read_text())
    typing_only: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            typing_only.update(id(inner) for inner in ast.walk(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, id(node) in typing_only
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module or "", node.lineno, id(node) in typing_only


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_lies_below_them(package: str) -> None:
    for path in sources(package):
        for module, line, _ in imports(path):
            if module.startswith("fairlead."):
                other = module.split(".")[1]
                assert other == package or other in ALLOWED[package], f"{name(path)}:{line} imports {module}"


def test_parts_of_the_proxy_know_each_other_only_as_drawn() -> None:
    for path in sources("proxy"):
        part = path.relative_to(PACKAGES["proxy"]).parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        for module, line, _ in imports(path):
            if module.startswith("fairlead.proxy."):
                other = module.split(".")[2]
                assert other == part or other in PROXY_ALLOWED[part], f"{name(path)}:{line} imports {module}"
                if other == "store" and part not in ("store", "app", "assembly"):
                    border = module.removeprefix("fairlead.proxy.store.")
                    assert border in STORE_BORDER, f"{name(path)}:{line}: only the interface"


def test_no_import_cycles() -> None:
    """Not even for types: what two files need of each other belongs in a third, or behind an interface."""
    modules = {
        ".".join(("fairlead", *path.relative_to(ROOT).with_suffix("").parts[2:])): path
        for path in every_source()
    }
    graph = {
        module: {other for other, _, _ in imports(path) if other in modules}
        for module, path in modules.items()
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail[trail.index(module) :], module))
        if module not in done:
            for other in graph[module]:
                visit(other, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_pure_files_do_no_io_and_never_wait() -> None:
    for relative in PURE:
        path = ROOT / relative
        tree = ast.parse(path.read_text())
        for module, line, typing_only in imports(path):
            if not typing_only:
                assert module.split(".")[0] not in IMPURE_MODULES, f"{relative}:{line} imports {module}"
        waiting = [
            node.lineno for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef | ast.Await)
        ]
        assert not waiting, f"{relative}:{waiting[0]} waits"


def test_every_pure_docstring_is_kept() -> None:
    """A module that calls itself pure is in the list above, so that the claim is checked."""
    for path in every_source():
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        if text.startswith("Pure."):
            assert name(path) in PURE, f"{name(path)} says it is pure; add it to PURE"


def test_the_world_is_reached_only_through_the_seam() -> None:
    for path in every_source():
        if name(path) in WORLD_FILES or path.is_relative_to(PACKAGES["testing"]):  # which is another world
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
                found = (called.value.id, called.attr)
                assert found not in WORLD_ONLY, f"{name(path)}:{node.lineno} uses {'.'.join(found)}"
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = (
                    [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
                )
                for module in modules:
                    assert module not in ("random", "secrets", "uuid"), f"{name(path)}:{node.lineno}"


def test_processes_are_started_through_the_seam() -> None:
    for path in every_source():
        if name(path) in STARTING_FILES or name(path).startswith("runtime/fairlead/cli/"):
            continue
        for module, line, _ in imports(path):
            assert module != "subprocess", f"{name(path)}:{line}: World.run_program starts programs"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("open_process", "run_process", "Popen", "fork"), (
                    f"{name(path)}:{node.lineno}"
                )


def test_every_module_says_what_it_owns() -> None:
    for path in every_source():
        text = ast.get_docstring(ast.parse(path.read_text()))
        assert text, f"{name(path)} has no docstring"
        assert len(text) > 30, f"{name(path)} says too little"


def test_every_reason_is_given_somewhere() -> None:
    """A code that nothing refuses with would promise operators what cannot happen."""
    text = "".join(
        path.read_text() for path in every_source() if path.name not in ("reasons.py", "reason_codes.py")
    )
    for reason in Reason:
        assert f"Reason.{reason.name}" in text or reason is Reason.UNKNOWN_REASON, reason


def test_nothing_is_called_by_a_name_that_says_nothing() -> None:
    for path in every_source():
        assert path.stem not in BANNED_NAMES, name(path)


def test_files_stay_readable() -> None:
    for path in every_source():
        lines = len(path.read_text().splitlines())
        most = 900 if path.name == "reasons.py" else 600  # one table, which reads best whole
        assert lines <= most, f"{name(path)} has {lines} lines; does it hold one thing?"


def test_the_namespace_has_no_init_file() -> None:
    """fairlead is a PEP 420 namespace: an __init__.py in one of the folders would hide the others."""
    for package in PACKAGES.values():
        assert not (package.parent / "__init__.py").exists()
        assert (package / "py.typed").exists()
