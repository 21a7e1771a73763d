"""Pure. /openapi.json, generated from the endpoint table, the contract and the types that the handlers really decode.

`docs/openapi.json` is the same document, kept so that a change of it is seen; `fairlead check openapi` compares the
two, and with a running proxy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from fairlead.protocol.reasons import TRAITS, Reason, traits
from fairlead.proxy.dispatch.submit import Submission
from fairlead.proxy.guard.access import Scope
from fairlead.proxy.ops.approvals_api import ApprovalVote
from fairlead.proxy.ops.callbacks_api import CallbackReplay, CallbackResult
from fairlead.proxy.ops.contract import ANYWHERE, BODIES, CONTRACT, Answers, refusals
from fairlead.proxy.ops.controls_api import AgentChange, BudgetChange, RateLimitClear
from fairlead.proxy.ops.dead_letters_api import ReplayRequest
from fairlead.proxy.ops.endpoints import ENDPOINTS, Endpoint
from fairlead.proxy.ops.keys_api import KeyRequest
from fairlead.proxy.ops.pins_api import PinAcceptance
from fairlead.proxy.ops.secrets_api import SecretRelease
from fairlead.proxy.ops.sessions_api import TransferRequest
from fairlead.proxy.ops.steering_api import DispatchRolloutChange, FlagChange, KillSwitchChange
from fairlead.proxy.ops.telemetry_api import AlertSilence
from fairlead.proxy.rollout.plan import Plan

REQUESTS: Final = (
    Submission, CallbackResult, CallbackReplay, ReplayRequest, BudgetChange, AgentChange, RateLimitClear, KeyRequest,
    Plan, KillSwitchChange, DispatchRolloutChange, FlagChange, ApprovalVote, SecretRelease, TransferRequest,
    PinAcceptance,
    AlertSilence,
)  # fmt: skip
_PREFIX: Final = "#/components/schemas/"
_PROBLEM: Final = "application/problem+json"


def document(version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 description."""
    types = [kind for row in CONTRACT.values() for status in row.types for kind in row.kinds(status)]
    found, components = msgspec.json.schema_components([*REQUESTS, *types], ref_template=_PREFIX + "{name}")
    schemas = dict(zip((*REQUESTS, *types), found, strict=True))
    components["Batch"] = {
        "type": "array", "items": {"$ref": f"{_PREFIX}Submission"}, "minItems": 1, "maxItems": 1000,
    }  # fmt: skip
    components["Problem"] = _problem_schema()
    responses, examples = _Responses(), {each.value: {"value": _problem_example(each)} for each in TRAITS}
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in ENDPOINTS:
        row = CONTRACT[endpoint.name]
        operation: dict[str, Any] = {
            "operationId": _operation_id(endpoint),
            "summary": endpoint.summary,
            "security": _security(endpoint),
            "x-required-scope": endpoint.scope.value,
            "x-open-from-loopback": endpoint.open_read,
            "x-concerns-all-tenants": endpoint.fleet,
            "x-on-clients-port": endpoint.public,
            "responses": {
                **{str(status): _success(status, kind, row, schemas) for status, kind in row.types.items()},
                **responses.of(endpoint, row),
                "default": responses.reference(
                    "Anywhere", ANYWHERE, "Of any request, before or beside its operation."
                ),
            },
        }
        parameters = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}] * (
            "{id}" in endpoint.path
        ) + [{"name": name, "in": "query", "schema": {"type": "string"}} for name in row.query]
        if parameters:
            operation["parameters"] = parameters
        if endpoint.body:
            operation["requestBody"] = {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": {"$ref": _PREFIX + endpoint.body}, "example": BODIES[endpoint.body],
                    }
                },
            }  # fmt: skip
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Fairlead operations",
            "version": version,
            "description": "Callers say who they are by an operator key or a token; a signature proves that a request "
            "is whole and new, and alone it submits, and replays what it submitted. Refusals are problem+json with one "
            "type for each reason.",
        },
        "paths": paths,
        "components": {
            "schemas": dict(sorted(components.items())),
            "responses": responses.components,
            "examples": {name: examples[name] for name in sorted(responses.named)},
            "securitySchemes": _SECURITY_SCHEMES,
        },
    }


_SECURITY_SCHEMES: Final = {
    "opsKey": {
        "type": "apiKey", "in": "header", "name": "x-ops-key",
        "description": "An operator key, of the configuration or of the store.",
    },
    "bearer": {
        "type": "http", "scheme": "bearer", "bearerFormat": "JWT",
        "description": "HS256 under a shared secret, or RS256, ES256 or EdDSA under a key that the issuer publishes.",
    },
    "signature": {
        "type": "apiKey", "in": "header", "name": "x-signature",
        "description": "v2 keyId=KEYID;ts=MILLISECONDS;nonce=NONCE;sig=HEX, HMAC-SHA256 over ts, nonce, method, "
        "path?query, SHA-256 of the body and keyId, joined by line feeds. Good for one call.",
    },
    "workerSignature": {
        "type": "apiKey", "in": "header", "name": "x-worker-signature",
        "description": "HMAC-SHA256 over the time (x-worker-timestamp) and the whole body.",
    },
}  # fmt: skip


class _Responses:
    """Refusals by status. Operations that refuse with the same reasons share one description."""

    def __init__(self) -> None:
        self.components: dict[str, Any] = {}
        self.named: set[str] = set()
        self._known: dict[tuple[Reason, ...], str] = {}

    def of(self, endpoint: Endpoint, row: Answers) -> dict[str, Any]:
        by_status: dict[int, list[Reason]] = {}
        for reason in refusals(endpoint):
            by_status.setdefault(traits(reason).status, []).append(reason)
        found = {}
        for status, reasons in sorted(by_status.items()):
            if status not in row.types:  # where health answers 503, it is no refusal
                found[str(status)] = self.reference(f"Refused{status}", tuple(reasons), "Refused.")
        return found

    def reference(self, stem: str, reasons: tuple[Reason, ...], what: str) -> dict[str, str]:
        if reasons not in self._known:
            count = sum(name == stem or name.startswith(f"{stem}_") for name in self.components)
            name = f"{stem}_{count + 1}" if count else stem
            self._known[reasons] = name
            self.named |= {each.value for each in reasons}
            self.components[name] = _refusal(reasons, what)
        return {"$ref": f"#/components/responses/{self._known[reasons]}"}


def _refusal(reasons: Iterable[Reason], what: str) -> dict[str, Any]:
    names = [each.value for each in reasons]
    schema = {
        "allOf": [{"$ref": f"{_PREFIX}Problem"}, {"properties": {"reason": {"enum": names}}}],
    }
    return {
        "description": f"{what} {', '.join(names)}.",
        "content": {
            _PROBLEM: {
                "schema": schema,
                "examples": {name: {"$ref": f"#/components/examples/{name}"} for name in names},
            }
        },
    }


def _success(status: int, kind: Any, row: Answers, schemas: dict[Any, Any]) -> dict[str, Any]:
    if isinstance(kind, str):
        return {"description": _MEANS[status], "content": {kind: {"schema": {"type": "string"}}}}
    found = [schemas[each] for each in row.kinds(status)]
    content: dict[str, Any] = {"schema": found[0] if len(found) == 1 else {"oneOf": found}}
    if row.example is not None and status == next(iter(row.types)):
        content["example"] = row.example
    return {"description": _MEANS[status], "content": {"application/json": content}}


_MEANS: Final = {
    200: "Done.",
    201: "Made.",
    202: "Accepted durably, and not ended yet.",
    503: "Not healthy.",
}


def _security(endpoint: Endpoint) -> list[dict[str, list[str]]]:
    if endpoint.scope is Scope.OPEN:
        return []
    if endpoint.scope is Scope.SIGNED:
        return [{"workerSignature": []}]
    found: list[dict[str, list[str]]] = [{"opsKey": []}, {"bearer": []}]
    if endpoint.scope in (Scope.READ, Scope.DISPATCH, Scope.REPLAY):
        found.append({"signature": []})
    return found


def _operation_id(endpoint: Endpoint) -> str:
    """Its name; one that has two paths is told apart by the second one's first word."""
    if endpoint.path.startswith("/api/job-sources/"):
        return f"job_sources_{endpoint.name}"
    return endpoint.name


def _problem_schema() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["type", "title", "status", "detail", "reason", "correlation_id"],
        "properties": {
            "type": {"type": "string", "format": "uri"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "reason": {"type": "string"},
            "correlation_id": {"type": "string"},
            "action": {"type": "string"},
            "retry_after": {"type": "integer"},
        },
    }


def _problem_example(reason: Reason) -> dict[str, Any]:
    row = traits(reason)
    example: dict[str, Any] = {
        "type": f"urn:fairlead:reason:{reason.value}", "title": row.title, "status": row.status, "detail": "",
        "reason": reason.value, "correlation_id": "01a21300-9c47-7f19-916b-dcb1fe6b87f6", "action": row.action,
    }  # fmt: skip
    if row.status in (429, 503):
        example["retry_after"] = 1
    return example
