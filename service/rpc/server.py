"""The gRPC server of one process: its port, TLS, health checks and reflection, from its start to its stop.

This module does not depend on the calls that the server answers.
"""

from __future__ import annotations

import logging
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from foldserve.service.access.files import stamp
from foldserve.service.compose import Service
from foldserve.service.errors import StartError
from foldserve.service.rpc.servicer import NAME, Servicer
from foldserve.service.settings import Settings

log = logging.getLogger("foldserve")

_HEALTH = "grpc.health.v1.Health"


class RpcServer:
    """Serves on `--grpc-port`. All methods must be called on the same event loop."""

    def __init__(self, settings: Settings, service: Service) -> None:
        self._settings = settings
        self._service = service
        self._health = health.aio.HealthServicer()
        limit = settings.max_body + settings.max_head
        options = (
            ("grpc.max_receive_message_length", limit),
            ("grpc.max_send_message_length", -1),
            # The workers share the port. The only process of a server must not share the port with another server.
            ("grpc.so_reuseport", int(settings.workers > 1)),
        )
        servicer = Servicer(service, administers=settings.admin_port is None)
        self._server = grpc.aio.server(options=options)
        self._server.add_generic_rpc_handlers((servicer.handler(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((NAME, _HEALTH, reflection.SERVICE_NAME), self._server)

    async def start(self) -> None:
        """Bind the port and serve. Raises `StartError`."""
        host = self._settings.host
        address = f"[{host}]:{self._settings.grpc_port}" if ":" in host else f"{host}:{self._settings.grpc_port}"
        try:
            if self._settings.tls_cert is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, self._credentials(self._settings.tls_cert))
        except RuntimeError as error:
            raise StartError(f"can't listen on {address} for gRPC: the address is in use or not available") from error
        await self._server.start()
        await self.tick()
        log.info("gRPC is on %s port %s", host, port)

    async def tick(self) -> None:
        """Update the status of the health checks. Call `tick` about once a second, and when the server drains."""
        serving = health_pb2.HealthCheckResponse.SERVING
        status = serving if self._service.ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", NAME):
            await self._health.set(name, status)

    async def stop(self, grace: float) -> None:
        """Accept no more calls, and wait at most `grace` seconds for the calls that have begun."""
        await self._server.stop(grace)

    def _credentials(self, certificate: Path) -> grpc.ServerCredentials:
        """Return credentials that read the files again when the files change."""
        settings = self._settings
        files = [file for file in (settings.tls_cert, settings.tls_key, settings.tls_client_ca) if file is not None]
        seen = stamp(files)

        def changed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal seen
            now = stamp(files)
            if now == seen:
                return None
            seen = now
            try:
                return self._certificates(certificate)
            except OSError as error:
                log.error("the TLS certificate of gRPC stays as it was: %s", error.strerror)
                return None

        return grpc.dynamic_ssl_server_credentials(
            self._certificates(certificate), changed, require_client_authentication=settings.tls_client_ca is not None
        )

    def _certificates(self, certificate: Path) -> grpc.ServerCertificateConfiguration:
        settings = self._settings
        chain = certificate.read_bytes()
        key = chain if settings.tls_key is None else settings.tls_key.read_bytes()
        roots = None if settings.tls_client_ca is None else settings.tls_client_ca.read_bytes()
        return grpc.ssl_server_certificate_configuration(((key, chain),), roots)
