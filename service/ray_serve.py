"""The application that `serve deploy deploy/ray/serve.yaml` runs: each replica has the service as its ASGI app.

Ray Serve owns sockets, processes, routing and autoscaling. This module does not depend on HTTP. This module needs the
extra `ray`. https://docs.ray.io/en/latest/serve/http-guide.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foldserve.service.http.embedded import EmbeddedService, check_settings
from foldserve.service.settings import load

if TYPE_CHECKING:
    from ray.serve import Application

DEPLOYMENT = "foldserve"


class Replica:
    """One process of Ray Serve, which serves all models. app: the ASGI application, which `serve.ingress` sets."""

    app: EmbeddedService

    def check_health(self) -> None:
        """Raise `DeviceError` if Ray must start this replica again. Ray calls this method every few seconds."""
        self.app.check_health()


def application(arguments: dict[str, Any]) -> Application:
    """Create the application. arguments: settings of `foldserve serve`, with underscores, such as `max_batch`.

    The `FOLDSERVE_*` variables in the environment of Ray's processes are settings too. Raises `SettingsError`.
    """
    from ray import serve  # Ray is large, and only this function needs it

    settings = load(arguments)
    check_settings(settings)

    def create_app() -> EmbeddedService:
        return EmbeddedService(settings)

    return serve.deployment(name=DEPLOYMENT)(serve.ingress(create_app)(Replica)).bind()
