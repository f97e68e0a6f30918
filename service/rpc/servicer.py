"""The calls of the Open Inference Protocol.

This module passes the messages of the calls to the service, and does not depend on ports or processes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from importlib.metadata import version
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from foldserve.service.access.keys import Scope
from foldserve.service.compose import Service
from foldserve.service.engine.index import repository_index
from foldserve.service.engine.repository import Model
from foldserve.service.errors import InvalidInput, MissingScope, ModelNotReady, RequestError, UnknownModel
from foldserve.service.live.command import Command, Kind
from foldserve.service.metrics.prometheus import PrometheusMetrics
from foldserve.service.protocols import oip_documents
from foldserve.service.protocols.reply import Reply, failure, refusal
from foldserve.service.rpc import messages
from foldserve.service.rpc import open_inference_pb2 as pb
from foldserve.service.rpc.translate import metadata_headers, to_body, to_error, to_response
from foldserve.service.telemetry.record import Record

log = logging.getLogger("foldserve")

NAME = "inference.GRPCInferenceService"
_MAX_DIGITS = 18

Context = Any  # `grpc.aio.ServicerContext[...]` is valid only in type stubs, not at run time
_Call = Callable[[Any, Context, dict[bytes, bytes]], Coroutine[Any, Any, Message]]


class Servicer:
    """Answers the calls of one serving process.

    administers: whether this port answers the calls for statistics and administration.
    """

    def __init__(self, service: Service, *, administers: bool) -> None:
        self._service = service
        self._repository = service.repository
        self._administers = administers

    def handler(self) -> grpc.GenericRpcHandler:
        """Return the handler of all calls."""
        unary: dict[str, tuple[type[Message], Scope, _Call]] = {
            "ServerLive": (pb.ServerLiveRequest, Scope.OPEN, self._server_live),
            "ServerReady": (pb.ServerReadyRequest, Scope.OPEN, self._server_ready),
            "ModelReady": (pb.ModelReadyRequest, Scope.PREDICT, self._model_ready),
            "ServerMetadata": (pb.ServerMetadataRequest, Scope.PREDICT, self._server_metadata),
            "ModelMetadata": (pb.ModelMetadataRequest, Scope.PREDICT, self._model_metadata),
            "ModelConfig": (pb.ModelConfigRequest, Scope.PREDICT, self._model_config),
            "ModelInfer": (pb.ModelInferRequest, Scope.PREDICT, self._model_infer),
            "ModelStatistics": (pb.ModelStatisticsRequest, Scope.METRICS, self._model_statistics),
            "RepositoryIndex": (pb.RepositoryIndexRequest, Scope.ADMIN, self._repository_index),
            "RepositoryModelLoad": (pb.RepositoryModelLoadRequest, Scope.ADMIN, self._load),
            "RepositoryModelUnload": (pb.RepositoryModelUnloadRequest, Scope.ADMIN, self._unload),
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                self._guarded(name, request, scope, call), None, lambda message: message.SerializeToString()
            )
            for name, (request, scope, call) in unary.items()
        }
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            self._model_stream_infer, None, lambda message: message.SerializeToString()
        )
        return grpc.method_handlers_generic_handler(NAME, handlers)

    def _guarded(
        self, name: str, kind: type[Message], scope: Scope, call: _Call
    ) -> Callable[[bytes, Context], Coroutine[Any, Any, Message]]:
        """Return the handler of a call, which checks the API key first and then reads the message.

        Every exception becomes a gRPC status.
        """

        async def guarded(message: bytes, context: Context) -> Message:
            reply = failure(500, "internal error")
            try:
                headers = metadata_headers(context.invocation_metadata())
                self._check(headers, scope)
                return await call(messages.read(kind, message), context, headers)
            except _Refused as refused:
                reply = refused.reply
            except RequestError as error:
                self._service.metrics.count_rejected(error)
                reply = refusal(error)
            except Exception:
                log.exception("internal error in %s", name)
            code, text, trailing = to_error(reply)
            await context.abort(code, text, trailing)
            raise AssertionError  # `abort` raises an exception

        return guarded

    def _check(self, headers: Mapping[bytes, bytes], scope: Scope) -> None:
        if scope in (Scope.METRICS, Scope.ADMIN) and not self._administers:
            raise MissingScope("metrics and administration are only on --admin-port", scope.value)
        if self._service.guard is not None:
            self._service.guard.check(headers, scope)

    # --- the server ---------------------------------------------------------------------------------------------------

    async def _server_live(self, *_: Any) -> Message:
        return pb.ServerLiveResponse(live=True)

    async def _server_ready(self, *_: Any) -> Message:
        return pb.ServerReadyResponse(ready=self._service.ready)

    async def _server_metadata(self, *_: Any) -> Message:
        extensions = oip_documents.extensions(statistics=isinstance(self._service.metrics, PrometheusMetrics))
        return pb.ServerMetadataResponse(name="foldserve", version=version("foldserve"), extensions=extensions)

    # --- models -------------------------------------------------------------------------------------------------------

    def _find(self, name: str, number: str) -> Model:
        """Raises `UnknownModel` and `ModelNotReady`."""
        if not number:
            return self._repository.find(name)
        if not (number.isascii() and number.isdigit() and len(number) <= _MAX_DIGITS):
            raise UnknownModel("unknown version of this model")
        return self._repository.find(name, int(number))

    async def _model_ready(self, request: pb.ModelReadyRequest, *_: Any) -> Message:
        try:
            ready = not self._find(request.name, request.version).runtime.lost
        except (UnknownModel, ModelNotReady):
            ready = False
        return pb.ModelReadyResponse(ready=ready)

    async def _model_metadata(self, request: pb.ModelMetadataRequest, *_: Any) -> Message:
        model = self._find(request.name, request.version)
        versions = self._repository.versions(model.manifest.name)
        ready = [str(number) for number, found in versions.items() if isinstance(found, Model)]
        return ParseDict(
            oip_documents.metadata(model.manifest, ready), pb.ModelMetadataResponse(), ignore_unknown_fields=True
        )

    async def _model_config(self, request: pb.ModelConfigRequest, *_: Any) -> Message:
        model = self._find(request.name, request.version)
        document = {"config": oip_documents.configuration(model.manifest, model.max_rows)}
        return ParseDict(document, pb.ModelConfigResponse(), ignore_unknown_fields=True)

    async def _model_statistics(self, request: pb.ModelStatisticsRequest, *_: Any) -> Message:
        metrics = self._service.metrics
        if not isinstance(metrics, PrometheusMetrics):
            raise InvalidInput("this server has no metrics, because --no-metrics is set")
        models = [self._find(request.name, request.version)] if request.name else self._repository.ready_models()
        models = list(models)
        metrics.flush()
        names = [(model.manifest.name, str(model.manifest.version)) for model in models]
        totals = await asyncio.to_thread(metrics.totals, names)
        stats = [oip_documents.statistics(m.manifest, t) for m, t in zip(models, totals, strict=True)]
        return ParseDict({"model_stats": stats}, pb.ModelStatisticsResponse(), ignore_unknown_fields=True)

    # --- inference ----------------------------------------------------------------------------------------------------

    async def _model_infer(
        self, request: pb.ModelInferRequest, context: Context, headers: dict[bytes, bytes]
    ) -> pb.ModelInferResponse:
        endpoint = self._find(request.model_name, request.model_version).oip
        inner, content = to_body(request, headers, context.time_remaining())
        body = endpoint.memory.new_body()
        body.add(content)  # raises MemoryFull
        del content
        record = self._begin_record(request, context, headers)
        status = 499  # this status is recorded if the client cancels the call
        try:
            reply = await endpoint.answer(inner, body, record)
            status = reply.status
        finally:
            if record is not None and self._service.observer is not None:
                self._service.observer.finish(record, status)
        if reply.status != 200:
            raise _Refused(reply)
        return to_response(reply)

    async def _model_stream_infer(self, received: AsyncIterator[bytes], context: Context) -> AsyncIterator[Message]:
        """Answer the requests of a stream, one after the other. An error ends only the request that caused it."""
        headers = metadata_headers(context.invocation_metadata())
        async for message in received:
            response = pb.ModelStreamInferResponse()
            request = pb.ModelInferRequest()
            try:
                self._check(headers, Scope.PREDICT)
                request = messages.read(pb.ModelInferRequest, message)
                response.infer_response.CopyFrom(await self._model_infer(request, context, headers))
            except _Refused as refused:
                response.error_message = to_error(refused.reply)[1]
            except RequestError as error:
                self._service.metrics.count_rejected(error)
                response.error_message = str(error)
            except Exception:
                log.exception("internal error in ModelStreamInfer")
                response.error_message = "internal error"
            if response.error_message:
                response.infer_response.id = request.id
            yield response

    def _begin_record(
        self, request: pb.ModelInferRequest, context: Context, headers: dict[bytes, bytes]
    ) -> Record | None:
        observer = self._service.observer
        if observer is None:
            return None
        path = b"/%b/ModelInfer" % NAME.encode()
        record = Record(b"POST", path, headers, b"", b"", context.peer(), secure=bool(context.auth_context()))
        record.note_identity(request.id)
        observer.begin(record)
        return record

    # --- administration -----------------------------------------------------------------------------------------------

    async def _repository_index(self, request: pb.RepositoryIndexRequest, *_: Any) -> Message:
        models = repository_index(self._repository, only_ready=request.ready)
        return ParseDict({"models": models}, pb.RepositoryIndexResponse())

    async def _load(self, request: pb.RepositoryModelLoadRequest, *_: Any) -> Message:
        await self._execute("load", request, allowed=set())
        return pb.RepositoryModelLoadResponse()

    async def _unload(self, request: pb.RepositoryModelUnloadRequest, *_: Any) -> Message:
        await self._execute("unload", request, allowed={"unload_dependents"})
        return pb.RepositoryModelUnloadResponse()

    async def _execute(self, kind: Kind, request: Any, allowed: set[str]) -> None:
        if self._service.guard is None:
            raise MissingScope("without API keys (--keys) the models can't be changed", Scope.ADMIN.value)
        if set(request.parameters) - allowed:
            raise InvalidInput("models are loaded only from the server's folder, so a load has no parameters")
        # KServe's clients send the name of the model in the field that Triton's clients use for a repository.
        await self._service.control.execute(Command(kind=kind, name=request.model_name or request.repository_name))


class _Refused(Exception):  # noqa: N818
    """A reply whose status is an error."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply
