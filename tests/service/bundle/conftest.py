"""Folders for the tests of bundles."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """An empty folder for models."""
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def folder(models: Path) -> Path:
    """The folder of an intact bundle, which a test may damage."""
    return models / "diabetes" / "1"
