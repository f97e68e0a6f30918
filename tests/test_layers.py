"""One table for all packages lists the layers that each layer may import.

docs/architecture.md shows the same table of layers.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import foldserve

PACKAGE = Path(foldserve.__file__).parent

# Each line has the name of a layer below `foldserve`, then the layers that this layer may import. A layer is a module
# or a folder. A name without a package is in the package of the line's first layer. Each layer comes after all layers
# that it may import, so the table has no circular imports. A line that begins with a blank continues the line before
# it.
TABLE = """
service.errors:
service.arrays:
service.text:
service.figures:
service.settings:         errors
service.machine:          errors
service.bundle:           errors
service.sources:          text errors
service.access:           errors
service.live:             bundle settings errors
service.metrics:          bundle errors
service.telemetry:        metrics errors
service.protocols:        metrics bundle arrays errors
service.quality:          telemetry protocols metrics bundle arrays errors
service.tables:           protocols bundle arrays text errors
service.prediction_log:   tables metrics bundle arrays errors
service.explain:          protocols bundle arrays errors
service.runtime.session:  machine errors
service.runtime:          runtime.session machine bundle arrays errors
service.engine:           quality live runtime runtime.session explain telemetry protocols metrics bundle machine
                          settings arrays errors
service.compose:          access engine live prediction_log telemetry protocols metrics machine settings errors
service.rpc:              compose access engine live telemetry protocols metrics settings errors
service.http:             rpc compose access engine quality live telemetry protocols metrics bundle machine settings
                          errors
service.ray_serve:        http settings
service.commands.score:   tables sources protocols runtime runtime.session bundle machine arrays text figures errors
service.commands:         access runtime runtime.session bundle machine settings arrays figures errors
service.cli:              http commands commands.score settings errors
service.__main__:         cli

training.errors:
training.text:            service.text
training.activations:
training.plan:            activations
training.table:           text plan errors service.bundle service.sources service.figures service.errors
training.network:         activations table plan
training.fold:            network errors service.bundle
training.fit:             network plan errors service.bundle
training.progress:        fit service.figures
training.certify:         fold fit table plan errors service.bundle service.machine service.runtime.session
training.report:          text fit service.bundle service.figures
training.pipeline:        certify report fold fit network table plan service.bundle
training.diagnose:        pipeline report fold fit network table plan errors service.bundle service.figures
                          service.runtime.session
training.tune:            pipeline fit table plan errors
training.flags:           plan errors service.bundle
training.summary:         text table plan service.bundle service.figures
training.imports:         summary flags certify report fold fit table plan text errors service.sources service.bundle
                          service.figures service.runtime.session
training.cli:             imports flags summary text tune pipeline diagnose report progress fit table plan errors
                          service.bundle service.figures
training.__main__:        cli

api.errors:               service.errors
api.extras:               errors
api.frames:               extras service.errors
api.rows:                 frames service.tables service.protocols service.bundle service.arrays service.errors
api.model:                rows service.runtime service.runtime.session service.machine service.bundle service.arrays
                          service.errors
api.conversation:         rows extras errors service.bundle service.arrays
api.client:               conversation extras service.bundle
api.fit:                  frames extras errors training.pipeline training.report training.fit training.progress
                          training.table training.summary training.flags training.plan training.activations
                          training.errors service.sources service.bundle service.errors
api.estimators:           rows frames extras errors training.pipeline training.certify training.fold training.table
                          training.plan training.activations training.errors service.runtime.session service.bundle
                          service.arrays
api.import_model:         fit extras errors training.imports training.errors service.bundle service.errors
"""


def parse(table: str) -> dict[str, set[str]]:
    layers = {}
    for line in filter(None, table.replace("\n ", " ").splitlines()):
        name, _, allowed = line.partition(":")
        package = name.partition(".")[0]
        full = {
            other if other.startswith(("service.", "training.")) else f"{package}.{other}" for other in allowed.split()
        }
        assert full <= layers.keys(), f"{name} may import a layer that does not stand above it in the table"
        layers[name] = full
    return layers


LAYERS = parse(TABLE)

# Each library with the layers that may import it. A layer that the table does not list for a library may not import
# that library.
CONFINED = {
    "fastapi": "service.http",
    "grpc": "service.rpc",
    "starlette": "service.http",
    "uvicorn": "service.http",
    "httptools": "service.http",
    "pyarrow": "service.sources service.tables service.prediction_log service.commands.score training api",
    "ray": "service.commands.score service.ray_serve",
    "prometheus_client": "service.metrics service.http",
    "opentelemetry": "service.telemetry",
    "torch": "training",
    "sklearn": "training api.estimators",
    "httpx": "api.client api.conversation",
    "pandas": "api.frames training.imports",
    "polars": "api.frames",
    "scipy": "training",
}


def layer(name: str) -> str | None:
    """Return the layer of a module below `foldserve`, or of a name in this module.

    The layer is the longest key of `LAYERS` that is a prefix of the name.
    """
    parts = name.split(".")
    names = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((found for found in names if found in LAYERS), None)


def modules() -> Iterator[tuple[str, Path]]:
    """Yield every module of the packages, and the module's name below `foldserve`."""
    for package in ("service", "training", "api"):
        for file in sorted((PACKAGE / package).rglob("*.py")):
            name = ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
            if name != package:  # `test_a_package_imports_nothing_of_the_project` checks __init__
                yield name, file


def imported(file: Path) -> Iterator[str]:
    """Yield all names that `file` imports, at the top or inside a function. For `from a import b`, the function yields
    a.b.
    """
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


MODULES = dict(modules())


def test_every_layer_of_the_table_exists() -> None:
    assert set(LAYERS) == {layer(name) for name in MODULES}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_what_the_table_allows(name: str) -> None:
    own = layer(name)
    assert own is not None, f"{name} has no layer: add it to the table"
    allowed = {own, *LAYERS[own]}
    for target in imported(MODULES[name]):
        top, _, below = target.partition(".")
        assert top not in ("service", "training", "api"), f"{name} imports {target}: its name is foldserve.{target}"
        if top == "foldserve":
            assert layer(below) in allowed, f"{name} imports {target}, and the table does not allow it"
        elif top in CONFINED:
            allowed_here = CONFINED[top].split()
            assert any(f"{name}.".startswith(f"{place}.") for place in allowed_here), f"{name} imports {target}"


def test_the_table_allows_only_imports_that_exist() -> None:
    used: dict[str | None, set[str | None]] = {name: set() for name in LAYERS}
    for name, file in MODULES.items():
        used[layer(name)] |= {layer(target.partition(".")[2]) for target in imported(file) if "foldserve." in target}
    unused = {name: allowed - used[name] for name, allowed in LAYERS.items() if allowed - used[name]}
    assert not unused, "remove them from the table"


@pytest.mark.parametrize("file", ["service/__init__.py", "training/__init__.py", "api/__init__.py"])
def test_a_package_imports_nothing_of_the_project(file: str) -> None:
    assert not [name for name in imported(PACKAGE / file) if name.split(".")[0] == "foldserve"]


def test_the_documentation_has_the_same_table() -> None:
    page = Path(__file__).parents[1] / "docs" / "architecture.md"
    assert f"```{TABLE}```" in page.read_text(encoding="utf-8")
