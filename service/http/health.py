"""Answers health probes. Until the models are loaded, `startup.py` answers the probes instead."""

from __future__ import annotations

import orjson

from foldserve.service.compose import Service
from foldserve.service.protocols.reply import JSON, Reply


def probe_reply(name: str, *, holds: bool) -> Reply:
    """Return the answer to the probe `name`: a 200 if its condition holds, else a 503."""
    return Reply(200 if holds else 503, (JSON,), orjson.dumps({name: holds}))


def live(_: Service) -> Reply:
    """Answer that the process is alive."""
    return probe_reply("live", holds=True)


def started(_: Service) -> Reply:
    """Answer that the start is complete: the models are loaded before any request can reach this function."""
    return probe_reply("started", holds=True)


def ready(service: Service) -> Reply:
    """Answer whether every model has reproduced its golden outputs and the server accepts new requests."""
    return probe_reply("ready", holds=service.ready)


PROBES = {"/v2/health/live": live, "/v2/health/started": started, "/v2/health/ready": ready}
"""The paths of GET requests, without a query, and the functions that answer them."""
