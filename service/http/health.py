"""Answers health probes. Until the models are loaded, `startup.py` answers the probes instead."""

from __future__ import annotations

import orjson

from foldserve.service.compose import Service
from foldserve.service.protocols.reply import JSON, Reply


def live(_: Service) -> Reply:
    """Answer that the process is alive."""
    return Reply(200, (JSON,), orjson.dumps({"live": True}))


def started(_: Service) -> Reply:
    """Answer that the start is complete: the models are loaded before any request can reach this function."""
    return Reply(200, (JSON,), orjson.dumps({"started": True}))


def ready(service: Service) -> Reply:
    """Answer whether every model has reproduced its golden outputs and the server accepts new requests."""
    return Reply(200 if service.ready else 503, (JSON,), orjson.dumps({"ready": service.ready}))


PROBES = {"/v2/health/live": live, "/v2/health/started": started, "/v2/health/ready": ready}
"""The paths of GET requests, without a query, and the functions that answer them."""
