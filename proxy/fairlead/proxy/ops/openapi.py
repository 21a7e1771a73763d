"""Pure. /openapi.json, generated from the endpoint table and the types that the handlers really decode."""

from __future__ import annotations

from typing import Any

import msgspec

from fairlead.protocol.reasons import TRAITS, Reason
from fairlead.proxy.dispatch.submit import Submission
from fairlead.proxy.ops.callbacks_api import CallbackReplay, CallbackResult
from fairlead.proxy.ops.controls_api import AgentChange, BudgetChange, RateLimitClear
from fairlead.proxy.ops.dead_letters_api import ReplayRequest
from fairlead.proxy.ops.endpoints import ENDPOINTS, Scope


def document(version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 description."""
    _, components = msgspec.json.schema_components(
        [
            Submission,
            CallbackResult,
            CallbackReplay,
            ReplayRequest,
            BudgetChange,
            AgentChange,
            RateLimitClear,
        ],
        ref_template="#/components/schemas/{name}",
    )
    reference = {"$ref": "#/components/schemas/Submission"}
    components["Batch"] = {"type": "array", "items": reference, "minItems": 1, "maxItems": 1000}
    components["Problem"] = {
        "type": "object",
        "required": ["type", "title", "status", "detail", "reason", "correlation_id"],
        "properties": {
            "type": {"type": "string"}, "title": {"type": "string"}, "status": {"type": "integer"},
            "detail": {"type": "string"}, "correlation_id": {"type": "string"}, "action": {"type": "string"},
            "retry_after": {"type": "integer"},
            "reason": {"type": "string", "enum": [reason.value for reason in Reason if reason in TRAITS]},
        },
    }  # fmt: skip
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in ENDPOINTS:
        operation: dict[str, Any] = {
            "operationId": endpoint.name,
            "summary": endpoint.summary,
            "responses": {
                "default": {
                    "description": "A refusal.",
                    "content": {
                        "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
                    },
                },
                **_successes(endpoint.name),
            },
        }
        if endpoint.scope is Scope.SIGNED:
            operation["security"] = [{"workerSignature": []}]
        elif endpoint.scope is not Scope.OPEN:
            operation["security"] = [{"opsKey": []}]
        if "{id}" in endpoint.path:
            operation["parameters"] = [
                {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
            ]
        if endpoint.body:
            schema = {"$ref": f"#/components/schemas/{endpoint.body}"}
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "Fairlead operations", "version": version},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "opsKey": {"type": "apiKey", "in": "header", "name": "x-ops-key"},
                "workerSignature": {"type": "apiKey", "in": "header", "name": "x-worker-signature"},
            },
        },
    }


def _successes(name: str) -> dict[str, Any]:
    found: dict[str, Any] = {"200": {"description": "Done."}}
    if name.startswith("dispatch"):
        found["202"] = {"description": "Accepted durably; ask /api/runs/{id} how it ends."}
    return found
