"""The routes of the model repository API of the Open Inference Protocol: the index, and the commands of operators.

The protocol defines the commands load and unload. foldserve adds rollback and promote in the same form. Without API
keys, no command is executed, because otherwise any client could change the models.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from foldserve.service import errors
from foldserve.service.access.keys import Scope
from foldserve.service.compose import Service
from foldserve.service.engine.index import repository_index
from foldserve.service.engine.repository import Repository
from foldserve.service.http.routes.common import error_responses, read_body, requires
from foldserve.service.live.command import Command, Kind
from foldserve.service.protocols.body import BodyMemory
from foldserve.service.protocols.json_text import parse_json

_MAX_BODY = 2**16  # bytes
_MAX_VERSION = 10**18
_SUMMARIES: dict[Kind, str] = {
    "load": "Load a model or one of its versions, and try refused versions again",
    "unload": "Unload a model, or one of its versions, after its last request",
    "rollback": "Let the version answer that did before, or the version in `parameters`",
    "promote": "Let a version answer, whatever its comparison says",
}


def router(service: Service) -> APIRouter:
    """Create the routes."""
    routes = APIRouter()
    _add_index(routes, service.repository, service.memory)
    for kind in _SUMMARIES:
        _add_command(routes, service, kind)
    return routes


def _add_index(routes: APIRouter, repository: Repository, memory: BodyMemory) -> None:
    @routes.post("/v2/repository/index", tags=["models"], summary="The state of every version of every model")
    @requires(Scope.ADMIN)
    async def index(request: Request) -> list[dict[str, str]]:
        only_ready = (await _read_object(request, memory, '"ready" is true or false')).get("ready", False)
        if type(only_ready) is not bool:
            raise errors.InvalidInput('the body is not an object whose "ready" is true or false')
        return repository_index(repository, only_ready=only_ready)


def _add_command(routes: APIRouter, service: Service, kind: Kind) -> None:
    refused = error_responses(
        errors.LoadRefused, errors.InvalidInput, errors.MissingScope, errors.UnknownModel, errors.ModelBusy
    )

    @routes.post(
        "/v2/repository/models/{model:name}/" + kind,
        tags=["models"],
        summary=_SUMMARIES[kind],
        responses=refused,
        operation_id=f"{kind}_model",
    )
    @requires(Scope.ADMIN)
    async def command(request: Request, model: str) -> Response:
        body = await _read_object(request, service.memory, '"parameters" is an object')
        if service.guard is None:
            raise errors.MissingScope("without API keys (--keys) the models can't be changed", Scope.ADMIN.value)
        version = _version(body.get("parameters", {}), kind)
        await service.control.execute(Command(kind=kind, name=model, version=version))
        return Response(media_type="application/json")


async def _read_object(request: Request, memory: BodyMemory, member: str) -> dict[str, Any]:
    """Read the body of a request.

    An empty body counts as an empty object. member: the end of the error message, which tells what the object must
    contain.
    """
    body = await read_body(request, _MAX_BODY, memory)
    parsed = parse_json(body) if body else {}
    if type(parsed) is not dict:
        raise errors.InvalidInput(f"the body is not an object whose {member}")
    return parsed


def _version(parameters: Any, kind: Kind) -> int | None:
    """Return the version that the parameters of a command contain. Raises `InvalidInput`."""
    if type(parameters) is not dict:
        raise errors.InvalidInput('"parameters" is not an object')
    allowed = {"version", "unload_dependents"} if kind == "unload" else {"version"}
    if parameters.keys() - allowed:
        raise errors.InvalidInput("models are loaded only from the server's folder, and the only parameter is version")
    version = parameters.get("version")
    if type(version) is str and version.isascii() and version.isdigit() and len(version) <= len(str(_MAX_VERSION)):
        version = int(version)
    if version is not None and (type(version) is not int or not 0 < version < _MAX_VERSION):
        raise errors.InvalidInput("the parameter version is not a version number")
    return version
