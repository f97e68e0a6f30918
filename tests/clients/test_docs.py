"""The examples of docs/clients.md work. An example is skipped if a program that it needs is not installed.

The tests run the Python code and the commands of the page, and compare the output with the page. The command
perf_analyzer must exit with 0.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.clients.conftest import ROOT, Server
from tests.clients.test_perf_analyzer import PERF_ANALYZER

DOCS = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", DOCS, re.M | re.S)
PYTHON = [code for kind, code in BLOCKS if kind == "python"]
CONSOLE = [code for kind, code in BLOCKS if kind == "console"]
SHELL = [code for kind, code in BLOCKS if kind == "sh"]
PATIENCE = 120


def here(code: str, server: Server) -> str:
    """Return the code with the URL of the server under test."""
    return code.replace("http://127.0.0.1:8000", server.url).replace("127.0.0.1:8000", server.address)


def packages(code: str) -> set[str]:
    """The packages that a block of code imports."""
    nodes = list(ast.walk(ast.parse(code)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.split(".")[0] for name in names}


def name(code: str) -> str:
    return "-".join(sorted(packages(code) - sys.stdlib_module_names - {"numpy"})) or "files"


def run(*command: str, given: str, folder: Path, path: Path | None = None) -> str:
    """Run a command whose PATH begins with `path`. The command must write nothing to standard error."""
    env = os.environ | ({"PATH": f"{path}{os.pathsep}{os.environ['PATH']}"} if path else {})
    done = subprocess.run(
        command, input=given, cwd=folder, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


def rounded(text: str) -> str:
    """Round numbers to four decimals, because later decimals differ between machines, and collapse spaces."""
    return " ".join(re.sub(r"\d+\.\d+", lambda found: f"{float(found[0]):.4f}", text).split())


@pytest.fixture(scope="module")
def folder(server, tmp_path_factory) -> Path:
    """Run the first code block of the page, and return the folder with the files that it writes."""
    made = tmp_path_factory.mktemp("docs")
    run(sys.executable, "-W", "error", "-", given=here(PYTHON[0], server), folder=made)
    assert {file.name for file in made.iterdir()} == {"rows.json", "tensor.json", "rows.bin"}
    return made


@pytest.mark.parametrize("code", PYTHON[1:], ids=map(name, PYTHON[1:]))
def test_the_python_of_the_page_prints_the_documented_output(server, folder, code):
    if missing := sorted(package for package in packages(code) if find_spec(package) is None):
        pytest.skip(f"not installed here: {', '.join(missing)}")
    printed = run(sys.executable, "-W", "error", "-", given=here(code, server), folder=folder)
    assert printed.splitlines() == re.findall(r"^ *print\(.*\)  # (.*)$", code, re.M)


@pytest.mark.parametrize("code", CONSOLE, ids=["curl", "binary"])
def test_the_commands_of_the_page_print_the_documented_output(server, folder, code):
    for tool in ("bash", "curl", "jq"):
        if shutil.which(tool) is None:
            pytest.skip(f"not installed here: {tool}")
    # A command continues after a backslash or a pipe at the end of a line. The lines up to the next command are the
    # output.
    commands = re.findall(r"^\$ ((?:.*[\\|]\n)*.*\n)((?:(?!\$ ).*\n)*)", code, re.M)
    assert commands
    for command, shown in commands:
        printed = run("bash", "-euo", "pipefail", given=here(command, server), folder=folder)
        assert rounded(printed) == rounded(shown), command


@pytest.mark.skipif(PERF_ANALYZER is None, reason="perf_analyzer does not run here: make test-clients")
def test_the_perf_analyzer_command_of_the_page_succeeds(server, tmp_path):
    (tmp_path / "perf_analyzer").symlink_to(str(PERF_ANALYZER))
    (command,) = SHELL
    command = command.replace("-s 50", "-s 999")  # the test must also pass on a machine with unsteady timings
    printed = run("bash", "-eu", given=here(command, server), folder=tmp_path, path=tmp_path)
    assert "Concurrency: 4, throughput: " in printed
