"""The code of docs/python.md prints what the page shows, and the notebook runs from its first cell to its last."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

import foldserve
from tests.service.support import PATIENCE, environment, serving

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
NOTEBOOK = json.loads((ROOT / "examples" / "penguins.ipynb").read_text(encoding="utf-8"))


def steady(text: str) -> str:
    """Replace the figures of a training, because these figures differ between machines."""
    return re.sub(r"accuracy .*>", "accuracy ...>", text)


def test_the_page_prints_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    assert len(blocks) >= 6
    before, asking = blocks[:-2], blocks[-2:]
    names: dict[str, object] = {}

    def run(block: str) -> None:
        printed = StringIO()
        with redirect_stdout(printed):
            exec(block, names)  # noqa: S102 (the code of our own page)
        shown = [line.removeprefix("# ") for line in block.splitlines() if line.startswith("# ")]
        assert steady(printed.getvalue()) == steady("".join(f"{line}\n" for line in shown))

    for block in before:
        run(block)
    with serving(tmp_path / "my-models", tmp_path / "log") as server:
        names["url"] = server.url
        for block in asking:
            run(block)


def test_the_page_names_every_error_of_a_client() -> None:
    (table,) = re.findall(r"^\| error \| status \|\n\| ---.*\n((?:\|.*\n)+)", PAGE, re.M)
    named = set(re.findall(r"`(\w+)`", "".join(row.split(" | ")[0] for row in table.splitlines())))
    public = {name: getattr(foldserve, name) for name in foldserve.__all__}
    errors = {
        name for name, found in public.items() if isinstance(found, type) and issubclass(found, foldserve.ClientError)
    }
    assert errors - {"ClientError"} == named - {"ValueError", "TimeoutError", "ConnectionError"}


def test_the_notebook_runs_and_has_no_outputs(tmp_path: Path) -> None:
    shutil.copy(ROOT / "examples" / "penguins.csv", tmp_path)
    code = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert [cell for cell in code if cell["outputs"] or cell["execution_count"]] == []
    script = "\n\n".join("".join(cell["source"]) for cell in code)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "wrote        my-models/penguins/1" in done.stdout
    assert float(done.stdout.split()[-1]) > 0.95
