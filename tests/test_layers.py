"""One table of layers for both packages: which layer may import which. docs/architecture.md draws the same table."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import foldserve

PACKAGE = Path(foldserve.__file__).parent

# A layer is a module or a folder, by its name below `foldserve`. Its value lists the layers that it may import.
# A layer stands below every layer that imports it, so the table has no circles.
LAYERS = {
    "service.errors": "",
    "service.arrays": "",
    "service.settings": "service.errors",
    "service.machine": "service.errors",
    "service.bundle": "service.errors",
    "service.metrics": "service.bundle service.errors",
    "service.protocols": "service.metrics service.bundle service.arrays service.errors",
    "service.runtime.session": "service.machine service.bundle service.errors",
    "service.runtime": "service.runtime.session service.machine service.bundle service.arrays service.errors",
    "service.engine": "service.runtime service.runtime.session service.protocols service.metrics service.bundle "
    "service.machine service.settings service.arrays service.errors",
    "service.http": "service.engine service.protocols service.metrics service.bundle service.settings service.errors",
    "service.commands": "service.runtime service.runtime.session service.bundle service.machine service.settings "
    "service.arrays service.errors",
    "service.cli": "service.http service.commands service.runtime service.runtime.session service.bundle "
    "service.settings service.errors",
    "service.__main__": "service.cli",
    # The trainer meets the service in the contents of a bundle, in the one opener of sessions and in the name of the
    # processor, and nowhere else.
    "training.errors": "",
    "training.text": "",
    "training.plan": "training.errors",
    "training.table": "training.text training.plan training.errors service.bundle",
    "training.network": "training.table training.plan training.errors",
    "training.fold": "training.network training.errors service.bundle service.runtime.session",
    "training.fit": "training.network training.table training.plan training.errors service.bundle",
    "training.progress": "training.fit training.plan",
    "training.certify": "training.fold training.fit training.network training.table training.plan training.errors "
    "service.bundle service.machine service.runtime.session",
    "training.report": "training.text training.fit training.table training.plan training.errors service.bundle",
    "training.diagnose": "training.report training.certify training.fold training.fit training.network training.table "
    "training.plan training.errors service.bundle service.runtime.session",
    "training.pipeline": "training.certify training.report training.fold training.fit training.network training.table "
    "training.plan training.errors service.bundle",
    "training.tune": "training.pipeline training.fit training.table training.plan training.errors",
    "training.cli": "training.text training.tune training.pipeline training.diagnose training.report training.progress "
    "training.fit training.table training.plan training.errors service.bundle",
    "training.__main__": "training.cli",
}

# Libraries that only these layers may import. Everything else stays free of them.
CONFINED = {
    "fastapi": "service.http",
    "starlette": "service.http",
    "uvicorn": "service.http",
    "httptools": "service.http",
    "prometheus_client": "service.metrics service.http",
    "torch": "training",
    "sklearn": "training",
    "scipy": "training",
}


def layer(name: str) -> str | None:
    """The layer of a module or of a name in it, both below `foldserve`: the longest key of the table that fits."""
    parts = name.split(".")
    names = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((found for found in names if found in LAYERS), None)


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of both packages, by its name below `foldserve`."""
    for package in ("service", "training"):
        for file in sorted((PACKAGE / package).rglob("*.py")):
            name = ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
            if name != package:  # its __init__ is checked by `test_a_package_imports_nothing_of_the_project`
                yield name, file


def imported(file: Path) -> Iterator[str]:
    """The names that `file` imports, at its top or later: `from a import b` is a.b."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


MODULES = dict(modules())


def test_each_layer_imports_only_layers_above_it_in_the_table() -> None:
    seen: set[str] = set()
    for name, allowed in LAYERS.items():
        assert set(allowed.split()) <= seen, f"{name} may import a layer that is not listed before it"
        seen.add(name)


def test_every_layer_of_the_table_exists() -> None:
    assert set(LAYERS) == {layer(name) for name in MODULES}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_what_the_table_allows(name: str) -> None:
    own = layer(name)
    assert own is not None, f"{name} has no layer: add it to the table"
    allowed = {own, *LAYERS[own].split()}
    for target in imported(MODULES[name]):
        top, _, below = target.partition(".")
        assert top not in ("service", "training"), f"{name} imports {target}: its name is foldserve.{target}"
        if top == "foldserve":
            assert layer(below) in allowed, f"{name} imports {target}, and the table does not allow it"
        elif top in CONFINED:
            allowed_here = CONFINED[top].split()
            assert any(f"{name}.".startswith(f"{place}.") for place in allowed_here), f"{name} imports {target}"


@pytest.mark.parametrize("file", ["__init__.py", "service/__init__.py", "training/__init__.py"])
def test_a_package_imports_nothing_of_the_project(file: str) -> None:
    assert not [name for name in imported(PACKAGE / file) if name.split(".")[0] == "foldserve"]
