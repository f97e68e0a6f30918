"""Fixtures for all tests: two small bundles that the public pipeline trains once, and copies that a test may damage."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from foldserve.service import bundle
from foldserve.training.pipeline import run
from foldserve.training.plan import DataOptions, Plan, Recipe

# The servers under test run on this machine. Requests to the servers must not use a proxy from a developer's
# environment.
os.environ["NO_PROXY"] = "127.0.0.1"

# A shell makes its background jobs ignore SIGINT, and nohup makes programs ignore SIGHUP. Child processes inherit the
# ignored signals. The programs under test must not ignore the signals.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A test must not fail because the machine is slow.
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with digits/1, a classification, and diabetes/1, a regression. A test that changes the folder must copy
    it first.
    """
    models = tmp_path_factory.mktemp("trained")
    for source in ("digits", "diabetes"):
        run(Plan(data=DataOptions(source), name=source, models=models, recipe=Recipe(epochs=5)))
    return models


@pytest.fixture(scope="session")
def digits(trained: Path) -> bundle.Bundle:
    return bundle.read(trained / "digits" / "1")


@pytest.fixture(scope="session")
def diabetes(trained: Path) -> bundle.Bundle:
    return bundle.read(trained / "diabetes" / "1")


@pytest.fixture
def models(trained: Path, tmp_path: Path) -> Path:
    """A copy of `trained` that the test may damage."""
    return Path(shutil.copytree(trained, tmp_path / "models"))
