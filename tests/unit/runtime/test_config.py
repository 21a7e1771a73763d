"""The loader: environment, files, problems all at once, and nothing secret in what it says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Annotated, Literal

import pytest
from pydantic import Field
from tests.support.config_text import OPS_KEY, PREVIOUS, SECRET

from fairlead.runtime.config import (
    ConfigError,
    Problem,
    environment_names,
    load,
    read_private_file,
    read_text,
)
from fairlead.runtime.config_model import (
    Configuration,
    FileName,
    Finding,
    Id,
    Lax,
    OpsKey,
    Secret,
    Section,
)


class Pump(Section):
    """[pump]"""

    low: int = Field(1, ge=0, le=100)
    high: int = Field(10, ge=0, le=100)
    on: bool = False
    names: Annotated[tuple[Id, ...], Lax] = ()
    labels: dict[str, str] = Field(default_factory=dict)
    mode: Literal["slow", "fast"] = "slow"


class Valve(Section):
    """[[valves]]"""

    id: Id = Field(examples=["valve-1"])
    port: int = Field(ge=1, le=9, examples=[5])


class Trust(Section):
    """[trust]"""

    shared_secret: Secret | None = None
    shared_secret_file: FileName | None = None
    ops_keys: Annotated[tuple[OpsKey, ...], Lax] = ()


class Plant(Configuration):
    """A small configuration."""

    server_id: Id = Field(examples=["plant-1"])
    pump: Pump = Pump()
    valves: Annotated[tuple[Valve, ...], Lax] = ()
    trust: Trust = Trust()

    def findings(self) -> Iterator[Finding]:
        if self.pump.low > self.pump.high:
            yield Finding(("pump.low", "pump.high"), self.pump.low, "is above high", "lower it")
        for index, valve in enumerate(self.valves):
            for before in range(index):
                if self.valves[before].port == valve.port:
                    paths = (f"valves[{index}].port", f"valves[{before}].port")
                    yield Finding(paths, valve.port, f"is the port of valves[{before}]", "change it")


def read(text: str, environ: dict[str, str] | None = None, files: dict[str, str] | None = None) -> Plant:
    def read_file(name: str) -> str:
        if name not in (files or {}):
            raise FileNotFoundError(2, "No such file or directory", name)
        return (files or {})[name]

    return load(
        Plant,
        text,
        "plant.toml",
        {"FAIRLEAD_SERVER_ID": "a", **(environ or {})},
        aliases={"OLD_LOW": ("pump", "low")},
        refused_prefixes=("PUMP_", "FAIRLEAD_"),
        read_file=read_file,
    )


def problems(
    text: str, environ: dict[str, str] | None = None, files: dict[str, str] | None = None
) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        read(text, environ, files)
    return caught.value.problems


def paths(text: str, environ: dict[str, str] | None = None) -> list[str]:
    return [problem.path for problem in problems(text, environ)]


def test_defaults_and_the_file():
    assert read("").pump == Pump()
    config = read('[pump]\nlow = 3\nnames = ["a", "b"]\n[[valves]]\nid = "v"\nport = 2\n')
    assert (config.pump.low, config.pump.names, config.valves[0].port) == (3, ("a", "b"), 2)


def test_text_that_is_no_toml_is_one_problem_with_its_line():
    (problem,) = problems("[pump\nlow = 1")
    assert problem.path == "plant.toml"
    assert "line 1" in problem.message


@pytest.mark.parametrize(
    ("text", "path", "message", "found", "action"),
    [
        ("[pump]\nlow = -1", "pump.low", "is too small (allowed: 0 to 100)", "-1", "correct it"),
        ("[pump]\nlow = 101", "pump.low", "is too large (allowed: 0 to 100)", "101", "correct it"),
        ("[pump]\nlow = true", "pump.low", "must be an integer (allowed: 0 to 100)", "true", "correct it"),
        ("[pump]\nlow = 1.5", "pump.low", "must be an integer (allowed: 0 to 100)", "1.5", "correct it"),
        ('[pump]\nlow = "1"', "pump.low", "must be an integer (allowed: 0 to 100)", '"1"', "correct it"),
        ("[pump]\non = 1", "pump.on", "must be a boolean (allowed: true or false)", "1", "correct it"),
        (
            '[pump]\nmode = "quick"',
            "pump.mode",
            'is not one of the choices (allowed: "slow" or "fast")',
            '"quick"',
            "correct it",
        ),
        ('[pump]\nnames = "a"', "pump.names", "must be a list", '"a"', "correct it"),
        ("[pump]\nnames = [1]", "pump.names[0]", "must be a string in quotes", "1", "correct it"),
        ("[pump]\nlabels = 1", "pump.labels", "must be a table", "1", "correct it"),
        ("[pump]\nlabels = {a = 1}", "pump.labels.a", "must be a string in quotes", "1", "correct it"),
        ("pump = 1", "pump", "must be a table", "a value of type int", "write [pump] and the keys below"),
        (
            "[valves]\nport = 1",
            "valves",
            "must be an array of tables",
            "a table of 1",
            "write [[valves]] and the keys below",
        ),
        (
            "valves = [1]",
            "valves[0]",
            "must be an array of tables",
            "a value of type int",
            "write [[valves]] and the keys below",
        ),
        ("[pump]\nhihg = 1", "pump.hihg", "unknown key", "a value of type int", "did you mean high?"),
        ("[pmup]\nlow = 1", "pmup", "unknown key", "a table of 1", "did you mean pump?"),
        ("mode = 1", "mode", "unknown key", "a value of type int", "it belongs under [pump]"),
        ('[pump]\nzzz = "s"', "pump.zzz", "unknown key", "1 characters", "remove it"),
        (
            "[pump]\nserver_id = 1",
            "pump.server_id",
            "unknown key",
            "a value of type int",
            "it belongs above the first [table]",
        ),
        ('[[valves]]\nid = "v"', "valves[0].port", "is required", "nothing", "add it, for example: port = 5"),
    ],
)
def test_a_problem_says_path_range_found_and_what_to_do(text, path, message, found, action):
    assert problems(text) == (Problem(path, found, message, action),)


def test_a_problem_is_one_line_and_long_values_are_cut():
    (problem,) = problems('[pump]\nmode = """' + "line\n" * 100 + '"""')
    assert "\n" not in str(problem)
    assert len(str(problem)) < 250
    assert str(problem).startswith(
        'pump.mode: is not one of the choices (allowed: "slow" or "fast"), found: "line'
    )


def test_every_problem_comes_at_once_the_contradictions_too():
    found = problems(
        '[pump]\nlow = 50\nmode = "x"\n[[valves]]\nid = "A B"\nport = 5\n[[valves]]\nid = "v"\nport = 5\n'
        '[trust]\nshared_secret = "changeme"',
        {"PUMP_HIHG": "1"},
    )
    assert [problem.path for problem in found] == [
        "PUMP_HIHG",
        "pump.mode",
        "valves[0].id",
        "trust.shared_secret",
        "pump.low",
        "valves[1].port",
    ]
    assert str(ConfigError(found)).splitlines() == [str(problem) for problem in found]


def test_no_contradiction_is_told_of_a_key_that_is_itself_refused():
    assert paths("[pump]\nlow = 50\nhigh = 500") == ["pump.high"]
    assert paths("[pump]\nlow = 50\nhigh = []") == ["pump.high"]
    # A refused port is replaced by its example meanwhile: that the example clashes is nobody's problem.
    assert paths('[[valves]]\nid = "v"\nport = 99\n[[valves]]\nid = "w"\nport = 5') == ["valves[0].port"]
    assert paths('[[valves]]\nid = "v"\n[[valves]]\nid = "w"\nport = 5') == ["valves[0].port"]


def test_what_is_required_at_the_top_may_come_from_the_environment_or_is_told():
    with pytest.raises(ConfigError) as caught:
        load(Plant, "", "p", {}, aliases={}, refused_prefixes=(), read_file=str)
    assert (
        str(caught.value)
        == 'server_id: is required, found: nothing, add it, for example: server_id = "plant-1"'
    )


# -- environment


def test_names_of_the_environment():
    names = environment_names(Plant)
    assert names["PUMP_LOW"] == ("pump", "low")
    assert names["FAIRLEAD_SERVER_ID"] == ("server_id",)
    assert not any(name.startswith(("VALVES", "FAIRLEAD_VALVES", "FAIRLEAD_PUMP")) for name in names)


def test_the_environment_wins_over_the_file():
    config = read(
        '[pump]\nlow = 3\nhigh = 4\non = true\nnames = ["z"]',
        {
            "PUMP_LOW": "-0",
            "PUMP_HIGH": "90",
            "PUMP_ON": "false",
            "PUMP_NAMES": "a, b,,c",
            "PUMP_LABELS": "region=eu,empty=",
            "PUMP_MODE": "fast",
            "UNRELATED": "x",
        },
    )
    assert config.pump == Pump(
        low=0, high=90, names=("a", "b", "c"), labels={"region": "eu", "empty": ""}, mode="fast"
    )
    assert read("", {"PUMP_NAMES": ""}).pump.names == ()


@pytest.mark.parametrize("text", ["1", "TRUE", "yes", "", " true"])
def test_booleans_are_true_or_false(text):
    (problem,) = problems("", {"PUMP_ON": text})
    assert (problem.path, problem.message) == ("PUMP_ON", "must be a boolean (allowed: true or false)")


@pytest.mark.parametrize("text", ["1.0", "1_0", " 1", "", "0x1", "٣", "9" * 5000])
def test_integers_are_plain_digits(text):
    assert paths("", {"PUMP_LOW": text}) == ["PUMP_LOW"]


def test_problems_of_what_the_environment_set_name_the_variable():
    assert paths("[pump]\nlow = 1", {"PUMP_LOW": "101"}) == ["PUMP_LOW"]
    assert paths("", {"PUMP_NAMES": "fine,NOT FINE"}) == ["PUMP_NAMES"]
    assert paths("", {"PUMP_LABELS": "=x", "PUMP_LOW": "50"}) == ["PUMP_LOW"]  # a contradiction with high
    assert paths("", {"FAIRLEAD_SERVER_ID": "Not An Id"}) == ["FAIRLEAD_SERVER_ID"]
    assert paths("pump = 1", {"PUMP_LOW": "1"}) == ["pump"]


def test_an_unknown_name_with_a_refused_prefix():
    (one, two) = problems("", {"PUMP_LWO": "hunter22", "FAIRLEAD_SERVERID": "b", "VALVES_X": "1"})
    assert (one.path, one.action, one.found) == (
        "FAIRLEAD_SERVERID",
        "did you mean FAIRLEAD_SERVER_ID?",
        "1 characters",
    )
    assert (two.path, two.action) == ("PUMP_LWO", "did you mean PUMP_LOW?")
    assert "hunter22" not in str(two)
    (three,) = problems("", {"PUMP_XYZZY_PLUGH": "1"})
    assert three.action == "unset it"


def test_names_that_another_process_reads_are_let_pass():
    assert read("", {"FAIRLEAD_URL": "x", "FAIRLEAD_OPS_KEY": "x", "FAIRLEAD_NODE_KEY": "x"}).server_id == "a"


def test_an_alias_sets_its_key_unless_both_are_given():
    assert read("", {"OLD_LOW": "7"}).pump.low == 7
    (problem,) = problems("", {"OLD_LOW": "7", "PUMP_LOW": "8"})
    assert "a second time" in problem.message


# -- secrets


def test_a_secret_from_the_file_the_environment_or_a_named_file():
    def secret(config: Plant) -> str:
        assert config.trust.shared_secret is not None
        return config.trust.shared_secret.get_secret_value()

    named = '[trust]\nshared_secret_file = "/s"'
    assert secret(read(f'[trust]\nshared_secret = "{SECRET}"')) == SECRET
    assert secret(read("", {"TRUST_SHARED_SECRET": SECRET})) == SECRET
    assert secret(read(named, {}, {"/s": f"{SECRET}\n"})) == SECRET
    assert secret(read("", {"TRUST_SHARED_SECRET_FILE": "/s"}, {"/s": SECRET})) == SECRET
    assert secret(read(named, {"TRUST_SHARED_SECRET_FILE": "/t"}, {"/s": PREVIOUS, "/t": SECRET})) == SECRET


def test_a_secret_given_twice_is_refused():
    (problem,) = problems(
        f'[trust]\nshared_secret_file = "/s"\nshared_secret = "{SECRET}"', {}, {"/s": SECRET}
    )
    assert problem.path == "trust.shared_secret_file"
    assert problem.message == "gives a secret that trust.shared_secret gives too"
    (problem,) = problems(
        '[trust]\nshared_secret_file = "/s"', {"TRUST_SHARED_SECRET": SECRET}, {"/s": SECRET}
    )
    assert problem.message == "gives a secret that TRUST_SHARED_SECRET gives too"


def test_a_file_that_is_missing_empty_or_weak():
    named = '[trust]\nshared_secret_file = "/s"'
    (problem,) = problems(named)
    assert (problem.path, problem.message) == (
        "trust.shared_secret_file",
        "cannot be used: No such file or directory",
    )
    (problem,) = problems(named, {}, {"/s": " \n"})
    assert (problem.path, problem.message.split(" (")[0]) == ("trust.shared_secret_file", "is empty")
    (problem,) = problems("", {"TRUST_SHARED_SECRET_FILE": "/s"}, {"/s": "changeme"})
    assert (problem.path, problem.found) == ("TRUST_SHARED_SECRET_FILE", "<redacted> (8 characters)")
    assert problem.action == "make one with `fairlead secret new`"
    assert paths('[trust]\nshared_secret_file = ""') == ["trust.shared_secret_file"]


HIDDEN = "Hidden-Value-0123456789"


@pytest.mark.parametrize(
    ("text", "environ"),
    [
        (f'[trust]\nshared_secret = "{HIDDEN}"', {}),
        (f'[trust]\nshared_secret = ["{HIDDEN}"]', {}),
        (f'[trust]\nshared_secret_file = "{HIDDEN}"', {}),
        (f'[trust]\nshared_secrt = "{HIDDEN}"', {}),
        (f'[trust]\nops_keys = ["{HIDDEN}"]', {}),
        (f'[trust]\nops_keys = "{HIDDEN}"', {}),
        (f'[[trust.ops_keys]]\na = "{HIDDEN}"', {}),
        (f'[trsut]\nshared_secret = "{HIDDEN}"', {}),
        (f'trust = "{HIDDEN}"', {}),
        (f'password = "{HIDDEN}"', {}),
        (f'[pump]\nmode = "http://me:{HIDDEN}@host/"', {}),
        (f'[pump]\nmode = "http://me:a/b{HIDDEN}@host/"', {}),
        (f'[pump.labels]\napi_token = ["{HIDDEN}"]', {}),
        ("", {"TRUST_SHARED_SECRET": HIDDEN}),
        ("", {"TRUST_OPS_KEYS": f"{OPS_KEY},{HIDDEN}"}),
        ("", {"FAIRLEAD_NDOE_KEY": HIDDEN}),
        ("", {"TRUST_SHARED_SECRET_FILE": HIDDEN}),
        (f'[trust]\nshared_secret = "{HIDDEN}" oops', {}),
    ],
)
def test_no_error_shows_a_secret(text, environ):
    with pytest.raises(ConfigError) as caught:
        read(text, environ)
    assert HIDDEN not in str(caught.value) + repr(caught.value) + repr(caught.value.problems)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_no_configuration_shows_a_secret():
    config = read("", {"TRUST_SHARED_SECRET": SECRET, "TRUST_OPS_KEYS": OPS_KEY})
    assert SECRET not in repr(config) + str(config) + config.model_dump_json()
    assert OPS_KEY not in repr(config) + str(config) + config.model_dump_json()


# -- files


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o440])
def test_a_private_file_is_read(tmp_path, mode):
    path = tmp_path / "secret"
    path.write_text("text\n")
    path.chmod(mode)
    assert read_private_file(str(path)) == "text\n"


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o620, 0o660, 0o666])
def test_a_file_that_others_may_read_or_write_is_refused(tmp_path, mode):
    path = tmp_path / "secret"
    path.write_text(SECRET)
    path.chmod(mode)
    with pytest.raises(PermissionError, match="chmod 600"):
        read_private_file(str(path))
    with pytest.raises(ConfigError) as caught:
        load(
            Plant,
            f'server_id = "a"\n[trust]\nshared_secret_file = "{path}"',
            "p",
            {},
            aliases={},
            refused_prefixes=(),
            read_file=read_private_file,
        )
    (problem,) = caught.value.problems
    assert f"its mode 0{mode:o} lets others" in problem.message


def test_what_is_no_regular_file_or_no_text_is_refused_without_hanging(tmp_path):
    os.mkfifo(tmp_path / "fifo", 0o600)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "binary").chmod(0o600)
    for name in ("fifo", "binary", "missing", ".", "nul\\u0000byte"):
        with pytest.raises(ConfigError) as caught:
            load(
                Plant,
                f'server_id = "a"\n[trust]\nshared_secret_file = "{tmp_path}/{name}"',
                "p",
                {},
                aliases={},
                refused_prefixes=(),
                read_file=read_private_file,
            )
        assert [problem.path for problem in caught.value.problems] == ["trust.shared_secret_file"]


def test_a_configuration_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be read: No such file"):
        read_text(str(tmp_path / "missing.toml"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_text(str(tmp_path / "binary"))
