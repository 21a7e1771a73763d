"""Pure. Whether bytes hold a secret: one that is known, in any form that it is written in, or what looks like one.

Stands before everything that leaves the machine (`fairlead incident-bundle`), and by itself as `fairlead check leaks`.
Invariant: what is found is told by its name, form and place; never a part of the secret itself.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from fairlead.runtime.secret import decode_secret

BYTES_MIN: Final = 12  # shorter values are looked for nowhere: they would be found everywhere
FOUND_MAX: Final = 100
_SECRET_WORDS: Final = frozenset({"secret", "key", "keys", "password", "token", "jwt", "passphrase"})
_NO_SECRETS: Final = ("public", "idempotency", "header", "id")
REDACTED: Final = "[redacted]"
# What looks like a secret, whosever it is.
_CREDENTIAL: Final = rb"(?i)(?:x-ops-key|authorization)\"?\s*[:=]\s*\"?(?:bearer\s+)?[\w.~+/-]{24,}"
_NAMED: Final = rb"(?i)\b[a-z_]*(?:secret|password|node_key|ops_keys?)\b\"?\s*[=:]\s*\"?"
PATTERNS: Final = (
    ("a private key", re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")),
    ("an operator key", re.compile(rb"flk_[0-9a-f]{4,32}_[A-Za-z0-9_-]{40,}")),
    ("a bearer token", re.compile(rb"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{20,}")),
    (
        "a password in a URL",
        re.compile(rb"[a-z][a-z0-9+]{2,20}://[^\s/:@\"']{1,80}:[^\s/@\"'\[]{3,200}@[\w.\[-]"),
    ),
    ("a header with a credential", re.compile(_CREDENTIAL)),
    ("a secret in a setting", re.compile(_NAMED + rb"(?:[0-9a-f]{64,}|[A-Za-z0-9+/_-]{43}=?)")),
)


@dataclass(frozen=True, slots=True)
class Known:
    """A secret by its name, with everything that stands for it."""

    name: str
    forms: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class Leak:
    """Where a secret stands."""

    what: str
    form: str
    line: int

    def __str__(self) -> str:
        return f"line {self.line}: {self.what} ({self.form})"


def known(name: str, text: str) -> Known | None:
    """A secret as it is configured; None where it is too short to be looked for."""
    text = text.strip()
    forms: dict[bytes, str] = {}
    if len(text) >= BYTES_MIN:
        forms[text.encode()] = "as it is configured"
        _encoded(text.encode(), "of its text", forms)
    decoded = decode_secret(text)
    if isinstance(decoded, bytes):
        forms.setdefault(decoded, "raw bytes")
        forms.setdefault(decoded.hex().encode(), "hex")
        forms.setdefault(decoded.hex().upper().encode(), "hex in capitals")
        _encoded(decoded, "of its bytes", forms)
    return Known(name, tuple((form, value) for value, form in forms.items())) if forms else None


def _encoded(data: bytes, of_what: str, forms: dict[bytes, str]) -> None:
    """Base64 of either alphabet, also where the secret stands in the middle of what was encoded."""
    for shift in range(3):
        for encode, alphabet in ((base64.b64encode, "base64"), (base64.urlsafe_b64encode, "base64url")):
            whole = encode(bytes(shift) + data).rstrip(b"=")
            begin, end = (0, 2, 3)[shift], len(whole) - (1 if (shift + len(data)) % 3 else 0)
            if end - begin >= BYTES_MIN:
                forms.setdefault(whole[begin:end], f"{alphabet} {of_what}")
    forms.setdefault(data.hex().encode(), f"hex {of_what}")


def find(data: bytes, secrets: Iterable[Known]) -> list[Leak]:
    """Every known secret in it (once each), and what looks like one."""
    found = []
    for secret in secrets:
        for form, value in secret.forms:
            at = data.find(value)
            if at >= 0:
                found.append(Leak(secret.name, form, data.count(b"\n", 0, at) + 1))
                break
    for what, pattern in PATTERNS:
        for match in pattern.finditer(data):
            if len(found) >= FOUND_MAX:
                return found
            if REDACTED.encode() not in match[0] and b"redacted" not in match[0]:
                found.append(Leak(what, "by its shape", data.count(b"\n", 0, match.start()) + 1))
    return found


# -- which names stand for secrets


def is_secret_name(name: str) -> bool:
    """Whether a key of a configuration, or a variable, holds a secret: proxy_secret, RELIABILITY_OPS_KEYS, password."""
    words = name.lower().rpartition(".")[2].replace("-", "_").split("_")
    while words and words[-1] in ("previous", "text"):
        words.pop()
    return bool(words) and words[-1] in _SECRET_WORDS and not any(word in _NO_SECRETS for word in words)


def secrets_of_environment(environ: Mapping[str, str]) -> Iterator[Known]:
    """What variables hold; of a list each for itself."""
    for name, value in environ.items():
        if is_secret_name(name):
            yield from _several(name, value)
        elif "://" in value:
            yield from _of_url(name, value)


def secrets_of_settings(data: Any, read_file: Any, path: str = "") -> Iterator[Known]:
    """What a configuration holds, and the files of secrets that it names (`read_file`: their text, or "")."""
    if isinstance(data, Mapping):
        for name, value in data.items():
            yield from secrets_of_settings(value, read_file, f"{path}.{name}" if path else name)
    elif isinstance(data, list):
        for each in data:
            yield from secrets_of_settings(each, read_file, path)
    elif isinstance(data, str) and data:
        if is_secret_name(path):
            yield from _several(path, data)
        elif path.endswith("_file") and is_secret_name(path.removesuffix("_file")):
            yield from _several(path.removesuffix("_file"), read_file(data))
        elif "://" in data:
            yield from _of_url(path, data)


def _several(name: str, text: str) -> Iterator[Known]:
    for part in text.split(","):
        made = known(name, part)
        if made is not None:
            yield made


def _of_url(name: str, text: str) -> Iterator[Known]:
    try:
        password = urlsplit(text).password
    except ValueError:
        return
    if password and len(password) >= BYTES_MIN:
        yield Known(f"the password in {name}", (("as it is configured", password.encode()),))


def without_secrets(data: Any, path: str = "") -> Any:
    """A configuration as it may be shown: secrets and passwords taken out, all else as it is."""
    if isinstance(data, Mapping):
        return {
            name: without_secrets(value, f"{path}.{name}" if path else name) for name, value in data.items()
        }
    if isinstance(data, list):
        return [without_secrets(each, path) for each in data]
    if isinstance(data, str) and data:
        if is_secret_name(path):
            return REDACTED
        return re.sub(r"(://[^\s/:@]*):[^\s/@]+@", rf"\1:{REDACTED}@", data)
    return data
