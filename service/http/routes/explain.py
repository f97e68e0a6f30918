"""The routes of explanations: /v1/models/{model}:explain. The routes compute nothing themselves."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from foldserve.service.access.keys import Scope
from foldserve.service.engine.repository import Repository
from foldserve.service.http.routes.common import answer, parse_version, prediction_docs, requires
from foldserve.service.http.routes.friendly import Instances
from foldserve.service.protocols.friendly import JSON_TYPE

_ClassName = Annotated[
    str | None, Query(alias="class", description="The name of the class to explain; by default the predicted class.")
]


class Explanation(BaseModel):
    """The explanation of one row.

    `offset` and `contributions` add up to the `logit` of the class, or to the `value` of a regression.
    """

    class_: bool | int | float | str | None = None
    logit: float | None = None
    value: float | None = None
    offset: float
    contributions: dict[str, float]

    model_config = {"alias_generator": lambda name: name.rstrip("_")}


class Explanations(BaseModel):
    """The response of :explain.

    The contributions are exact if `method` is `affine`; otherwise, the contributions are integrated gradients.
    """

    model: str
    version: int
    method: Literal["affine", "integrated gradients"]
    explanations: list[Explanation]


def router(repository: Repository) -> APIRouter:
    """Create the routes."""
    routes = APIRouter()
    docs = prediction_docs({JSON_TYPE.decode(): {"schema": Instances.model_json_schema()}}, {"model": Explanations})

    @routes.post("/v1/models/{model:name}:explain", summary="Explain the predictions of the newest version", **docs)
    @requires(Scope.PREDICT)
    async def explain(request: Request, model: str, _: _ClassName = None) -> Response:
        return await answer(request, lambda: repository.find(model).explain)

    @routes.post(
        "/v1/models/{model:name}/versions/{version}:explain", summary="Explain the predictions of one version", **docs
    )
    @requires(Scope.PREDICT)
    async def explain_version(request: Request, model: str, version: str, _: _ClassName = None) -> Response:
        return await answer(request, lambda: repository.find(model, parse_version(version)).explain)

    return routes
