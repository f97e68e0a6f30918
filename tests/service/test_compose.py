"""The settings determine the parts of a service: models, the endpoint of each path, metrics and lifecycle."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from foldserve.service import bundle
from foldserve.service.compose import Service, compose
from foldserve.service.engine.lifecycle import Phase
from foldserve.service.errors import StartError
from foldserve.service.settings import Settings
from tests.service.support import flip_byte, write_square_root


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder of models. The service serves roots/1, roots/2 and pairs/1, and refuses roots/3."""
    whole = write_square_root(tmp_path)
    for _ in range(2):
        last = bundle.write(tmp_path, "roots", whole.model, lambda n: whole.manifest.model_copy(update={"version": n}))
    flip_byte(last.path / bundle.MODEL_FILE, 10)
    bundle.write(
        tmp_path, "pairs", whole.model, lambda n: whole.manifest.model_copy(update={"name": "pairs", "version": n})
    )
    return tmp_path


def composed(models: Path, **settings: Any) -> Service:
    return compose(Settings(models=models, device="cpu", **settings))


def test_each_path_leads_to_the_endpoint_of_its_model_and_protocol(models: Path) -> None:
    service = composed(models)
    newest, first, pairs = (service.repository.find(*asked) for asked in (("roots",), ("roots", 1), ("pairs",)))
    assert newest.manifest.version == 2
    assert service.endpoints == {
        b"/v1/models/roots:predict": newest.friendly,
        b"/v1/models/roots:explain": newest.explain,
        b"/v1/models/roots/versions/2:predict": newest.friendly,
        b"/v1/models/roots/versions/2:explain": newest.explain,
        b"/v1/models/roots/versions/1:predict": first.friendly,
        b"/v1/models/roots/versions/1:explain": first.explain,
        b"/v2/models/roots/infer": newest.oip,
        b"/v2/models/roots/versions/2/infer": newest.oip,
        b"/v2/models/roots/versions/1/infer": first.oip,
        b"/v1/models/pairs:predict": pairs.friendly,
        b"/v1/models/pairs:explain": pairs.explain,
        b"/v1/models/pairs/versions/1:predict": pairs.friendly,
        b"/v1/models/pairs/versions/1:explain": pairs.explain,
        b"/v2/models/pairs/infer": pairs.oip,
        b"/v2/models/pairs/versions/1/infer": pairs.oip,
    }


def test_predict_leads_to_the_default_model(models: Path) -> None:
    service = composed(models, default_model="pairs")
    assert service.endpoints[b"/predict"] is service.repository.find("pairs").friendly


@pytest.mark.parametrize("metrics", [True, False])
def test_a_service_starts_and_can_not_be_changed(metrics: bool, models: Path) -> None:
    service = composed(models, metrics=metrics)
    assert service.lifecycle.phase is Phase.STARTING
    with pytest.raises(FrozenInstanceError):
        service.endpoints = {}  # type: ignore[misc]


@pytest.mark.parametrize("strict", [True, False])
def test_a_refused_model_has_no_path_and_decides_a_strict_readiness(strict: bool, models: Path) -> None:
    flip_byte(models / "pairs" / "1" / bundle.MODEL_FILE, 10)
    service = composed(models, strict_readiness=strict, default_model="pairs")
    assert not service.ready
    service.lifecycle.start()
    assert service.ready is not strict
    assert b"/predict" not in service.endpoints
    assert not [path for path in service.endpoints if b"pairs" in path]
    service.lifecycle.drain()
    assert not service.ready


def test_a_refused_version_of_a_model_that_serves_does_not_decide_readiness(models: Path) -> None:
    service = composed(models)
    service.lifecycle.start()
    assert service.ready


def test_a_service_without_models_is_a_refusal_to_start(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="no models to serve"):
        composed(tmp_path, watch=False)
