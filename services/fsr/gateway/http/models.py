"""GET /v1/models and /v1/models/{id}"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from google.protobuf.json_format import MessageToDict

from fsr.common.errors import UnknownModel
from fsr.gateway.admission import Admission
from fsr.gateway.http.call import HttpCall
from fsr.gateway.http.messages.options import budget_value
from fsr.gateway.http.schemas.openapi import ERRORS
from fsr.gateway.http.schemas.responses import ModelList, ServedModel
from fsr.gateway.pipeline import Pipeline
from fsr.v1 import gateway_pb2 as pb

__all__ = ["models_router"]

_ERRORS: dict[int | str, dict[str, Any]] = {status: ERRORS[status] for status in (401, 503)}


def models_router(pipeline: Pipeline, admission: Admission) -> APIRouter:
    """The routes of the models that the caller may use."""
    router = APIRouter()

    @router.get("/v1/models", response_model=None, responses={200: {"model": ModelList}, **_ERRORS})
    async def models(request: Request) -> dict[str, Any]:
        """Every model that the caller may use."""
        with admission.call("ListModels", HttpCall(request)) as caller:
            return {"object": "list", "data": [_model_object(model) for model in pipeline.models(caller)]}

    @router.get(
        "/v1/models/{name:path}",
        response_model=None,
        responses={200: {"model": ServedModel}, **_ERRORS, 404: ERRORS[404]},
    )
    async def model(name: str, request: Request) -> dict[str, Any]:
        """One of them."""
        with admission.call("ListModels", HttpCall(request)) as caller:
            known = {model.model: model for model in pipeline.models(caller)}
            if name not in known:
                names = ", ".join(sorted(known)) or "none"
                raise UnknownModel(f"model: {name[:100]!r} is unknown; those that answer are: {names}")
            return _model_object(known[name])

    return router


def _model_object(model: pb.AvailableModel) -> dict[str, Any]:
    """OpenAI's object, with our facts under `fsr`."""
    policy = model.policy
    return {
        "id": model.model,
        "object": "model",
        "created": 0,  # a checkpoint has no date
        "owned_by": "fsr",
        "fsr": {
            "methods": list(model.methods),
            "encoders": model.encoders,
            "decoders": model.decoders,
            "policy": {
                "default_budget": budget_value(policy.default_budget),
                "default_method": policy.default_method,
                "default_options": MessageToDict(policy.default_options),
                "min_tokens": policy.bounds.min_tokens or None,
                "max_tokens": policy.bounds.max_tokens or None,
            },
        },
    }
