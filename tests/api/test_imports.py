"""`import foldserve` loads no library. A missing library gives an error with a remedy. Type checkers see every name."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import foldserve
from tests.service.support import PATIENCE, environment

HEAVY = ["torch", "fastapi", "onnxruntime", "pandas", "polars", "pyarrow", "sklearn", "httpx", "numpy", "pydantic"]


def fresh(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_foldserve_loads_none_of_its_libraries() -> None:
    assert fresh(f"import foldserve, sys; print([name for name in {HEAVY} if name in sys.modules])") == "[]"


def test_asking_for_fit_loads_no_torch_and_a_loaded_model_needs_no_trainer() -> None:
    assert fresh("import foldserve, sys; foldserve.fit; print('torch' in sys.modules)") == "False"
    code = (
        "import foldserve, sys; model = foldserve.load('models/digits/1'); print(model.predict([[0.0] * 64]).shape, "
        "[name for name in ('torch', 'fastapi', 'pandas', 'pyarrow', 'sklearn', 'httpx') if name in sys.modules])"
    )
    assert fresh(code) == "(1,) []"


@pytest.mark.parametrize(
    ("library", "code", "extra"),
    [
        ("torch", "foldserve.fit('digits')", "train,cpu"),
        ("sklearn", "foldserve.FoldedClassifier()", "train,cpu"),
        ("httpx", "foldserve.Client('http://127.0.0.1:1')", "client"),
        ("pyarrow", "foldserve.load('models/digits/1').predict({'pixel_0_0': [1.0]})", "frames"),
    ],
)
def test_a_missing_library_is_one_line_with_the_extra(library: str, code: str, extra: str) -> None:
    absent = f"""
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == {library!r} else find(name, *rest)
import foldserve
try:
    {code}
except ImportError as error:
    print(error)
"""
    assert fresh(absent) == f"{library} is not installed: pip install 'foldserve[{extra}]'"


def test_type_checkers_and_the_interpreter_see_the_same_names() -> None:
    tree = ast.parse(Path(foldserve.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    stubs = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert sorted(stubs) == sorted(foldserve.__all__)
    for name, module in stubs.items():
        assert getattr(foldserve, name) is getattr(sys.modules[str(module)], name)
    assert set(foldserve.__all__) <= set(dir(foldserve))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = foldserve.nothing


def test_every_public_name_has_a_docstring() -> None:
    for name in foldserve.__all__:
        public = getattr(foldserve, name)
        assert public.__doc__, name
        for member, value in vars(public).items() if isinstance(public, type) else ():
            if not member.startswith("_") and callable(value) and public.__module__.startswith("foldserve.api"):
                assert value.__doc__, f"{name}.{member}"
