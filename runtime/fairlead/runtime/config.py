"""Strict configuration: TOML and environment in; one frozen model, or every problem at once, out.

Owns how a configuration is read, and no key of any process. A model (`config_model`) says what each key
accepts, its `findings` which keys contradict each other; `config_problems` says how that is told.

Invariants: nothing is accepted that the model does not name; all problems come together, as a finding is
kept back only if a key it rests on is itself refused; no value that is or may be a secret is ever told.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar, get_origin

import tomli
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from fairlead.runtime.config_model import (
    Configuration,
    core_type,
    element_table_of,
    is_secret,
    keys,
    table_of,
)
from fairlead.runtime.config_problems import (
    ConfigError,
    Problem,
    describe,
    did_you_mean,
    dotted,
    is_secret_name,
    shown,
    size,
)

__all__ = [
    "FAIRLEAD_NAMES",
    "NOT_KEYS",
    "WORKER_NAMES",
    "ConfigError",
    "Problem",
    "environment_names",
    "load",
    "read_private_file",
    "read_text",
]

_REPAIRS_MAX: Final = 8
_OTHERS_MAY: Final = stat.S_IWGRP | stat.S_IWOTH | stat.S_IROTH

# Names of ours that no configuration file has a key for.
NOT_KEYS: Final = (
    "FAIRLEAD_URL",
    "FAIRLEAD_OPS_KEY",
    "FAIRLEAD_DATA",
    "FAIRLEAD_PORT_OFFSET",
    "FAIRLEAD_BENCH",
    "FAIRLEAD_BUILD_REF",
    "FAIRLEAD_BUILD_SHA",
    "FAIRLEAD_BUILD_CREATED_AT",
    # What a program of [[commands]] is told, which may itself start one of our processes.
    "FAIRLEAD_COMMAND",
    "FAIRLEAD_NODE",
    "FAIRLEAD_RUN_ID",
    "FAIRLEAD_ATTEMPT",
    "FAIRLEAD_IDEMPOTENCY_KEY",
    "FAIRLEAD_TENANT",
    "FAIRLEAD_PRINCIPAL",
    "FAIRLEAD_SUBJECT_TYPE",
    "FAIRLEAD_SESSION",
    "FAIRLEAD_CORRELATION_ID",
    "FAIRLEAD_DEADLINE_AT_MS",
)
# Every FAIRLEAD_ name that some process reads. A proxy and a node often share an environment, so each
# accepts what is meant for the other. A test compares this with the models.
FAIRLEAD_NAMES: Final = (
    *NOT_KEYS,
    "FAIRLEAD_SCHEMA_VERSION",
    "FAIRLEAD_ENVIRONMENT",
    "FAIRLEAD_SERVER_ID",
    "FAIRLEAD_PROXY_SECRET",
    "FAIRLEAD_PROXY_SECRET_FILE",
    "FAIRLEAD_PROXY_SECRET_PREVIOUS",
    "FAIRLEAD_PROXY_SECRET_PREVIOUS_FILE",
    "FAIRLEAD_NODE_KEY",
    "FAIRLEAD_NODE_KEY_FILE",
    "FAIRLEAD_NODE_KEY_PREVIOUS",
    "FAIRLEAD_NODE_KEY_PREVIOUS_FILE",
    "FAIRLEAD_PROXIES",
    "FAIRLEAD_DATA_DIR",
    "FAIRLEAD_LABELS",
    "FAIRLEAD_HANDLERS",
    "FAIRLEAD_CONTROL_SENDER_ID",
    "FAIRLEAD_CONTROL_EXPECTED_SENDER_ID",
    "FAIRLEAD_CONTROL_MAX_PAYLOAD",
    "FAIRLEAD_CONTROL_MAX_SKEW_MILLIS",
    "FAIRLEAD_CONTROL_TTL_MILLIS",
    "FAIRLEAD_CONTROL_MAX_INFLIGHT",
    "FAIRLEAD_CONTROL_REPLAY_WINDOW_MILLIS",
    "FAIRLEAD_CONTROL_REPLAY_MAX_ENTRIES",
    "FAIRLEAD_CONNECT_TIMEOUT_MILLIS",
    "FAIRLEAD_RECONNECT_BASE_MILLIS",
    "FAIRLEAD_RECONNECT_MAX_MILLIS",
    "FAIRLEAD_ENFORCE_PROXY",
    "FAIRLEAD_REQUIRE_AUTHENTICATED_MODE",
)
# The same for WORKER_: both processes have a [worker] table. The last is for `fairlead verify-deployment`.
WORKER_NAMES: Final = (
    "WORKER_MAX_CONCURRENT_TASKS",
    "WORKER_MAX_QUEUE_SIZE",
    "WORKER_TASK_TIMEOUT_MS",
    "WORKER_CALLBACK_URL",
    "WORKER_CALLBACK_SIGNING_SECRET",
    "WORKER_CALLBACK_SIGNING_SECRET_FILE",
    "WORKER_CALLBACK_SIGNING_SECRET_PREVIOUS",
    "WORKER_CALLBACK_SIGNING_SECRET_PREVIOUS_FILE",
    "WORKER_CALLBACK_OIDC_AUDIENCE",
    "WORKER_CALLBACK_OIDC_EMAIL",
    "WORKER_CALLBACK_OIDC_TOKEN_FILE",
    "WORKER_CALLBACK_SIGNATURE_TOLERANCE_SEC",
    "WORKER_CALLBACK_AFTER_MS",
    "WORKER_CALLBACK_ALLOWED_HOSTS",
    "WORKER_CALLBACK_TIMEOUT_MS",
    "WORKER_CALLBACK_CONCURRENT_MAX",
    "WORKER_PUBLIC_CALLBACKS",
    "WORKER_TASKS_AUTH_TOKEN",
    "WORKER_TASKS_AUTH_TOKEN_FILE",
    "WORKER_COMMAND_ALLOWED_HOSTS",
    "WORKER_BASE_URL",
)


M = TypeVar("M", bound=Configuration)
Path = tuple[str, ...]


@dataclass(slots=True)
class _Reading:
    """What is known about one configuration while it is being read."""

    model: type[Configuration]
    data: dict[str, Any]
    problems: list[Problem]
    origins: dict[str, str]  # key -> what set it, if that was not its own line in the file
    refused: set[str]  # keys whose own value is refused: no finding may rest on them

    def refuse(self, key: str, found: str, message: str, action: str = "") -> None:
        self.problems.append(Problem(self.origins.get(key, key), found, message, action))
        self.refused.add(key)


def load(
    model: type[M],
    text: str,
    source: str,
    environ: Mapping[str, str],
    *,
    aliases: Mapping[str, tuple[str, ...]],
    refused_prefixes: Sequence[str],
    read_file: Callable[[str], str],
) -> M:
    """The configuration in `text`, overridden by `environ`; `ConfigError` with everything that is wrong.

    `aliases` are further environment names and the keys they stand for. `read_file` reads the file that a
    `*_file` key names and raises OSError if it is missing or not private.
    """
    try:
        data = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise ConfigError([Problem(source, "text", f"is not TOML: {error}", "correct the line")]) from None
    reading = _Reading(model, data, [], {}, set())
    _apply_environment(reading, environ, aliases, tuple(refused_prefixes))
    _read_secret_files(reading, read_file)
    config = _validate(reading, model)
    if config is not None:
        for finding in config.findings():
            if not any(_overlap(path, broken) for path in finding.paths for broken in reading.refused):
                key = finding.paths[0]
                found = shown(finding.found, secret=is_secret_name(key))
                reading.problems.append(
                    Problem(reading.origins.get(key, key), found, finding.message, finding.action)
                )
    if config is None or reading.problems:
        raise ConfigError(reading.problems)
    return config


# -- keys


def environment_names(model: type[BaseModel]) -> dict[str, Path]:
    """Every environment variable that sets a key of the model. Tables in arrays have none."""
    names = {}
    for path, _ in keys(model):
        name = "_".join(path).upper()
        names[f"FAIRLEAD_{name}" if len(path) == 1 else name] = path
    return names


def _overlap(one: str, other: str) -> bool:
    short, long = sorted((one, other), key=len)
    return short == long or long.startswith((f"{short}.", f"{short}["))


# -- environment and files


def _apply_environment(
    reading: _Reading, environ: Mapping[str, str], aliases: Mapping[str, Path], prefixes: tuple[str, ...]
) -> None:
    fields = dict(keys(reading.model))
    names = {**environment_names(reading.model), **aliases}
    for name in sorted(environ):
        path = names.get(name)
        if path is None:
            if name.startswith(prefixes) and name not in (*FAIRLEAD_NAMES, *WORKER_NAMES):
                action = did_you_mean(name, [*names, *NOT_KEYS]) or "unset it"
                reading.refuse(name, size(environ[name]), "unknown environment variable", action)
            continue
        key = dotted(path)
        if key in reading.origins:
            message = f"sets {key} a second time"
            reading.refuse(key, size(environ[name]), message, f"unset it or {name}")
            continue
        reading.origins[key] = name
        _put(reading.data, path, _from_text(fields[path], environ[name]))


def _from_text(field: FieldInfo, text: str) -> object:
    """The value as TOML would give it. What does not parse stays text, and its type is refused later."""
    core = core_type(field.annotation)
    if core is bool:
        return {"true": True, "false": False}.get(text, text)
    if core is int:
        return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else text
    if core is float:
        return float(text) if re.fullmatch(r"-?[0-9]{1,15}(\.[0-9]{1,15})?", text) else text
    if get_origin(core) is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    if get_origin(core) is dict:
        pairs = (part.partition("=") for part in text.split(",") if part.strip())
        return {name.strip(): value.strip() for name, _, value in pairs}
    return text


def _read_secret_files(reading: _Reading, read_file: Callable[[str], str]) -> None:
    fields = dict(keys(reading.model))
    for path in fields:
        target = (*path[:-1], path[-1].removesuffix("_file"))
        named = _get(reading.data, path)
        if target == path or target not in fields or not isinstance(named, str) or not named:
            continue
        if not is_secret(fields[target]):  # a file of another kind (dispatch.kill_switch_file)
            continue
        key, target_key = dotted(path), dotted(target)
        # The name is not shown either: somebody may have put the secret itself here.
        found = shown(named, secret=True)
        if _get(reading.data, target) is not None:
            other = reading.origins.get(target_key, target_key)
            reading.refused.add(target_key)
            reading.refuse(key, found, f"gives a secret that {other} gives too", "keep one of them")
            continue
        try:
            content = read_file(named).strip()
        except (OSError, ValueError) as error:  # ValueError: no text, or no file name
            why = error.strerror if isinstance(error, OSError) else "it is not text"
            reading.refused.add(target_key)
            reading.refuse(key, found, f"cannot be used: {why or 'it cannot be read'}", "correct the file")
            continue
        reading.origins[target_key] = reading.origins.get(key, key)
        _put(reading.data, target, content)


def _get(data: Mapping[str, Any], path: Path) -> Any:
    value: Any = data
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _put(data: dict[str, Any], path: Path, value: object) -> None:
    table: Any = data
    for part in path[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            return  # a section that is no table is refused as such
    table[path[-1]] = value


def read_text(path: str) -> str:
    """The text of a configuration file; `ConfigError` if there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError([Problem(path, "no text", f"cannot be read: {why}", "name another file")]) from None


def read_private_file(path: str) -> str:
    """The text of a file that others can neither read nor write, and its group cannot write.

    Judges the opened file, not its name, so that nothing can be put in its place in between.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not hang the start
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        if status.st_mode & _OTHERS_MAY:
            mode = stat.S_IMODE(status.st_mode)
            raise PermissionError(
                errno.EACCES,
                f"its mode {mode:04o} lets others read it, or group or others write it: chmod 600",
            )
        with open(descriptor, encoding="utf-8", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


# -- validation


def _validate(reading: _Reading, model: type[M]) -> M | None:
    """The model, or None if not even stand-ins make it whole. Refused values are told and replaced.

    A replaced value lets the rest be judged: findings need a whole model, and say what they rest on.
    """
    for attempt in range(_REPAIRS_MAX):
        try:
            return model.model_validate(reading.data)
        except ValidationError as error:
            for details in error.errors(include_url=False):
                key = dotted(details["loc"])
                if attempt == 0 and key not in reading.refused:
                    # An element of a list from the environment is told at the variable that set the list.
                    setter = reading.origins.get(dotted(details["loc"][:-1]), key)
                    path = reading.origins.get(key, setter)
                    reading.problems.append(describe(model, details, path))
                reading.refused.add(key)
                _stand_in(reading, details)
    return None


def _stand_in(reading: _Reading, details: ErrorDetails) -> None:
    """Take the refused value out, or put the key's example in if the model cannot do without."""
    location = details["loc"]
    data: Any = reading.data
    model: type[BaseModel] = reading.model
    for depth, part in enumerate(location):
        field = model.model_fields.get(str(part))
        last = depth + 1 == len(location)
        if field is None:
            if isinstance(part, int) and not last:
                data = data[part]
                continue
            if isinstance(part, int):
                data[part] = {}
            else:
                data.pop(part, None)
            return
        inner = table_of(field) or element_table_of(field)
        if last or inner is None:
            data.pop(part, None)
            if field.is_required():
                data[part] = field.examples[0] if field.examples else {}
            return
        data, model = data[part], inner
