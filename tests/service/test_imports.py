"""Each import loads only certain libraries.

Each test imports modules in a new process. tests/test_layers.py has the table of layers.
"""

from __future__ import annotations

import pkgutil
import subprocess
import sys

from foldserve import service
from tests.service.support import PATIENCE, environment

MODULES = [
    module.name
    for module in pkgutil.walk_packages(service.__path__, "foldserve.service.")
    if not module.name.endswith(".__main__")
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
    """Return the packages that are loaded after an import of `modules`.

    A package of the project is foldserve.<package>.
    """
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    names = [name.split(".") for name in fresh(code).stdout.split()]
    return {".".join(parts[:2] if parts[0] == "foldserve" else parts[:1]) for parts in names}


def test_the_service_loads_neither_torch_nor_scikit_learn_nor_the_trainer() -> None:
    assert not loaded_by(
        "foldserve.service.http.app",
        "foldserve.service.cli",
        "foldserve.service.engine.repository",
        "foldserve.service.commands.inspect",
    ) & {
        *("torch", "sklearn", "scipy", "foldserve.training", "onnxscript"),
    }


def test_the_service_loads_where_torch_and_scikit_learn_are_absent() -> None:
    absent = "import sys; sys.modules.update(dict.fromkeys(['torch', 'sklearn', 'foldserve.training'])); "
    fresh(absent + f"import {', '.join(MODULES)}")


def test_the_bundle_needs_only_the_standard_library_and_pydantic() -> None:
    assert not loaded_by("foldserve.service.bundle") & {
        *(
            "fastapi",
            "starlette",
            "uvicorn",
            "onnxruntime",
            "onnx",
            "numpy",
            "orjson",
            "rich",
            "torch",
            "foldserve.training",
        ),
    }


def test_the_command_line_loads_no_server_and_no_runtime() -> None:
    assert not loaded_by("foldserve.service.cli") & {"fastapi", "uvicorn", "onnxruntime", "onnx", "numpy", "rich"}


def test_a_server_is_ready_without_fastapi_and_arrow() -> None:
    serving = loaded_by("foldserve.service.http.server")
    assert serving & {"uvicorn", "starlette", "onnxruntime"}
    assert not serving & {"fastapi", "opentelemetry", "nanoarrow"}


def test_the_batcher_loads_neither_http_nor_onnx_nor_prometheus() -> None:
    assert loaded_by("foldserve.service.engine.batcher") & {"numpy"}
    assert not loaded_by("foldserve.service.engine.batcher") & {
        *("fastapi", "starlette", "uvicorn", "httptools", "onnxruntime", "onnx", "orjson", "prometheus_client"),
    }


def test_a_codec_loads_no_framework_and_no_runtime() -> None:
    assert not loaded_by("foldserve.service.protocols.friendly", "foldserve.service.protocols.oip") & {
        *("fastapi", "starlette", "uvicorn", "httptools", "onnxruntime", "onnx"),
    }


def test_importing_any_module_of_the_service_prints_nothing() -> None:
    assert {"foldserve.service.http.app", "foldserve.service.cli", "foldserve.service.protocols.friendly"} <= set(
        MODULES
    )
    done = fresh(f"import {', '.join(MODULES)}")
    assert (done.stdout, done.stderr) == ("", "")
