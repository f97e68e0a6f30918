"""Who may import whom. Run in fresh processes: this one has loaded everything already."""

from __future__ import annotations

import ast
import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import service
import training
from tests.service.support import PATIENCE, environment

SERVICE, TRAINING = (Path(package.__path__[0]) for package in (service, training))
MODULES = [
    module.name for module in pkgutil.walk_packages(service.__path__, "service.") if module.name != "service.__main__"
]


def fresh(code: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def loaded_by(*modules: str) -> set[str]:
    """Name the packages that are loaded once `modules` are imported."""
    code = (
        f"import json, sys, {', '.join(modules)}; print(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    )
    return set(json.loads(fresh(code).stdout))


def imported(file: Path) -> Iterator[str]:
    """Name what `file` imports, at its top or late, as dotted names: `from a import b` is a.b."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports by dots"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(folder: Path) -> list[Path]:
    found = sorted(folder.rglob("*.py"))
    assert found
    return found


def test_the_service_loads_neither_torch_nor_scikit_learn_nor_the_trainer() -> None:
    assert not loaded_by("service.app", "service.cli", "service.repository", "service.inspect") & {
        *("torch", "sklearn", "scipy", "training", "onnxscript"),
    }


def test_the_service_loads_where_torch_and_scikit_learn_are_absent() -> None:
    absent = "import sys; sys.modules.update(dict.fromkeys(['torch', 'sklearn', 'training'])); "
    fresh(absent + f"import {', '.join(MODULES)}")


def test_the_contract_needs_only_the_standard_library_and_pydantic() -> None:
    assert not loaded_by("service.bundle") & {
        *("fastapi", "starlette", "uvicorn", "onnxruntime", "onnx", "numpy", "orjson", "rich", "torch", "training"),
    }


def test_the_command_line_alone_loads_no_server_and_no_runtime() -> None:
    assert not loaded_by("service.cli") & {"fastapi", "uvicorn", "onnxruntime", "onnx", "numpy", "rich"}


def test_the_batcher_knows_neither_http_nor_onnx() -> None:
    assert loaded_by("service.batcher") & {"numpy"}
    assert not loaded_by("service.batcher") & {
        *("fastapi", "starlette", "uvicorn", "httptools", "onnxruntime", "onnx", "orjson", "prometheus_client"),
    }


def test_a_codec_knows_no_framework_and_no_runtime() -> None:
    assert not loaded_by("service.codecs.friendly", "service.codecs.oip") & {
        *("fastapi", "starlette", "uvicorn", "httptools", "onnxruntime", "onnx"),
    }


def test_importing_any_module_of_the_service_prints_nothing() -> None:
    assert {"service.app", "service.cli", "service.codecs.friendly"} <= set(MODULES)
    done = fresh(f"import {', '.join(MODULES)}")
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("file", files(SERVICE), ids=lambda file: str(file.relative_to(SERVICE)))
def test_no_file_of_the_service_imports_the_trainer_or_its_libraries(file: Path) -> None:
    assert not {name.split(".")[0] for name in imported(file)} & {"training", "torch", "sklearn", "scipy"}


@pytest.mark.parametrize("file", files(TRAINING), ids=lambda file: str(file.relative_to(TRAINING)))
def test_the_trainer_meets_the_service_in_the_bundle_alone(file: Path) -> None:
    met = {".".join(name.split(".")[:2]) for name in imported(file) if name.split(".")[0] == "service"}
    assert met <= {"service.bundle"}


def test_http_lives_in_the_app_and_uvicorn_in_the_server_and_nowhere_else() -> None:
    for file in files(SERVICE):
        packages = {name.split(".")[0] for name in imported(file)} & {"fastapi", "starlette", "uvicorn"}
        allowed = {"app.py": {"fastapi", "starlette"}, "server.py": {"fastapi", "uvicorn"}, "wire.py": {"uvicorn"}}.get(
            file.name, {"fastapi", "starlette"} if file.parent.name == "routes" else set()
        )
        assert packages <= allowed, file


def test_nothing_imports_what_composes() -> None:
    for file in files(SERVICE):
        names = set(imported(file))
        if file.name != "server.py":
            assert not any(name.startswith("service.app") for name in names), file
        if file.name != "cli.py":
            assert not any(name.startswith("service.server") for name in names), file
        if file.name != "__main__.py":
            assert not any(name.startswith("service.cli") for name in names), file
