"""The files in `configs/` and the models say the same: every key, default and comment, both ways."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tomli
from pydantic import BaseModel
from tests.support.config_text import OPS_KEY, SECRET

from fairlead.backend.config import NodeConfig, load_node_config
from fairlead.cli.check_config import check_config
from fairlead.proxy.config import ProxyConfig, load_proxy_config
from fairlead.runtime.config import FAIRLEAD_NAMES, NOT_KEYS, WORKER_NAMES, environment_names
from fairlead.runtime.config_model import Configuration, element_table_of, is_secret, table_of

CONFIGS = Path(__file__).parents[2] / "configs"
COMMENTED_KEY = re.compile(r"^# ([a-z0-9_]+ = .+)$", re.MULTILINE)
PROXY_SECRETS = {"SECURITY_PROXY_SECRET": SECRET, "RELIABILITY_OPS_KEYS": OPS_KEY}
FILES = [
    pytest.param(ProxyConfig, "proxy.toml", id="proxy"),
    pytest.param(NodeConfig, "node.toml", id="node"),
]


def text_of(name: str) -> str:
    return (CONFIGS / name).read_text()


def tables(model: type[BaseModel], data: dict[str, Any]) -> list[tuple[str, type[BaseModel], dict[str, Any]]]:
    """Every table with its header, model and keys. Fails on a table that only one side has."""
    found = [("", model, {key: value for key, value in data.items() if key in model.model_fields})]
    known = set()
    for name, field in model.model_fields.items():
        if (table := table_of(field)) is not None:
            found.append((f"[{name}]", table, data[name]))
            known.add(name)
        elif (element := element_table_of(field)) is not None:
            found += [(f"[[{name}]]", element, keys) for keys in data[name]]
            known.add(name)
    assert known <= set(data), "a table is missing in the file"
    assert set(data) <= set(model.model_fields), "the file has a table or key that the model lacks"
    top = {key: value for key, value in found[0][2].items() if key not in known}
    return [("", model, top), *found[1:]]


def own_keys(model: type[BaseModel]) -> dict[str, Any]:
    return {
        name: field
        for name, field in model.model_fields.items()
        if table_of(field) is None and element_table_of(field) is None
    }


@pytest.mark.parametrize(("model", "name"), FILES)
def test_the_file_has_every_key_and_no_other(model: type[Configuration], name: str) -> None:
    data = tomli.loads(COMMENTED_KEY.sub(r"\1", text_of(name)))
    for header, table, values in tables(model, data):
        assert set(values) == set(own_keys(table)), header


@pytest.mark.parametrize(("model", "name"), FILES)
def test_what_is_not_commented_out_is_the_default_or_the_example(
    model: type[Configuration], name: str
) -> None:
    everything = {header: values for header, _, values in tables(model, tomli.loads(text_of(name)))}
    for header, table, _ in tables(model, tomli.loads(COMMENTED_KEY.sub(r"\1", text_of(name)))):
        for key, field in own_keys(table).items():
            if key not in everything[header]:
                default = field.get_default(call_default_factory=True)
                assert default is None or is_secret(field), f"{header} {key} is commented out without need"
                continue
            value = everything[header][key]
            expected = field.get_default(call_default_factory=True)
            if field.examples:
                expected = field.examples[0]
            assert value == (list(expected) if isinstance(expected, tuple) else expected), f"{header} {key}"


@pytest.mark.parametrize(("model", "name"), FILES)
def test_every_key_has_its_description_above_it(model: type[Configuration], name: str) -> None:
    header, comment, seen = "", [], 0
    by_header = {header: table for header, table, _ in tables(model, tomli.loads(text_of(name)))}
    for line in text_of(name).splitlines():
        commented_key = COMMENTED_KEY.match(line)
        if line.startswith("["):
            header, comment = line, []
        elif line.startswith("# ") and commented_key is None:
            comment.append(line.removeprefix("# "))
        elif line:
            key = line.removeprefix("# ").split(" = ")[0]
            description = by_header[header].model_fields[key].description
            assert description, f"{header} {key} has no description"
            assert " ".join(comment) == description, f"{header} {key}"
            comment, seen = [], seen + 1
        else:
            comment = []
    assert seen == sum(len(own_keys(table)) for table in by_header.values())


def test_the_files_load():
    proxy = load_proxy_config(str(CONFIGS / "proxy.toml"), PROXY_SECRETS)
    assert proxy.environment == "production"
    dev = load_proxy_config(str(CONFIGS / "dev.toml"), {"SECURITY_PROXY_SECRET": SECRET})
    assert dev.environment == "development"
    assert not dev.reliability.ops_require_operator_key
    node = load_node_config(str(CONFIGS / "node.toml"), {"FAIRLEAD_PROXY_SECRET": SECRET})
    assert node.server_id == "lobby-1"


def test_the_development_file_is_on_loopback_and_refused_in_production(capsys):
    dev = load_proxy_config(str(CONFIGS / "dev.toml"), {"SECURITY_PROXY_SECRET": SECRET})
    hosts = [*(listener.host for listener in dev.listeners), dev.messaging.host, dev.observability.host]
    assert set(hosts) == {"127.0.0.1"}
    environ = {"SECURITY_PROXY_SECRET": SECRET, "FAIRLEAD_ENVIRONMENT": "production"}
    assert check_config("proxy", str(CONFIGS / "dev.toml"), environ) == 2
    refused = capsys.readouterr().err
    assert "reliability.ops_require_operator_key: " in refused
    assert "nodes[0].id: " in refused


def test_checking_says_ok_or_every_problem(capsys, tmp_path):
    assert check_config("proxy", str(CONFIGS / "proxy.toml"), PROXY_SECRETS) == 0
    assert check_config("node", str(CONFIGS / "node.toml"), {"FAIRLEAD_NODE_KEY": SECRET}) == 0
    said = capsys.readouterr()
    assert said.out.count(": ok, ") == 2
    assert not said.err
    assert check_config("proxy", str(CONFIGS / "proxy.toml"), {"DISPATCH_PUBLIK": "1"}) == 2
    said = capsys.readouterr()
    assert not said.out
    assert said.err.splitlines()[0].endswith("proxy.toml: refused, 3 problems")
    assert len(said.err.splitlines()) == 4
    assert check_config("node", str(tmp_path / "gone.toml"), {}) == 2
    assert "refused, 1 problem\n" in capsys.readouterr().err


def test_each_process_accepts_the_names_of_the_other():
    names = {*environment_names(ProxyConfig), *environment_names(NodeConfig)}
    assert sorted(FAIRLEAD_NAMES) == sorted({*NOT_KEYS, *(n for n in names if n.startswith("FAIRLEAD_"))})
    workers = {name for name in names if name.startswith("WORKER_")}
    assert sorted(WORKER_NAMES) == sorted({"WORKER_BASE_URL", *workers})


@pytest.mark.parametrize("model", [ProxyConfig, NodeConfig])
def test_no_two_keys_share_an_environment_name(model: type[Configuration]) -> None:
    count = sum(
        len(own_keys(table)) for table in (model, *filter(None, map(table_of, model.model_fields.values())))
    )
    assert len(environment_names(model)) == count


@pytest.mark.parametrize("model", [ProxyConfig, NodeConfig])
def test_every_example_is_valid_and_every_required_key_has_one(model: type[Configuration]) -> None:
    elements = filter(None, map(element_table_of, model.model_fields.values()))
    for table in (model, *elements):
        required = {name: field for name, field in own_keys(table).items() if field.is_required()}
        assert all(field.examples for field in required.values())
        table.model_validate({name: field.examples[0] for name, field in required.items()})
