"""Tests `foldserve models`, `load`, `unload`, `rollback` and `promote` against a real server with API keys."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from foldserve.service.access.keys import Scope, create_key
from tests.service.live.versions import BODY, publish
from tests.service.support import Served, assert_refused_in_one_line, foldserve, serving

Command = Callable[..., "CompletedProcess[str]"]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The file of the server's keys, and a file with each key."""
    folder = tmp_path_factory.mktemp("keys")
    made = {"admin": tuple(Scope)[1:], "weak": (Scope.PREDICT,)}
    files = {name: folder / name for name in made}
    lines = []
    for name, scopes in made.items():
        key, line = create_key(name, scopes, None)
        files[name].write_text(f"{key}\n")
        lines.append(line)
    (folder / "lines").write_text("\n".join(lines))
    return files | {"lines": folder / "lines"}


@pytest.fixture(scope="module")
def served(keys: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    models = tmp_path_factory.mktemp("models")
    for number in (1, 2):
        publish(models, number)
    with serving(models, models / "log", "--no-watch", "--keys", keys["lines"], "--admin-port", 0) as server:
        yield server


@pytest.fixture
def command(served: Served, keys: dict[str, Path]) -> Command:
    """Run a command with the settings of the server in the environment."""
    assert served.process.stdout
    admin_port = _admin_port(served)

    def run(*arguments: object, key: str = "admin") -> CompletedProcess[str]:
        settings = {"PORT": str(served.port), "ADMIN_PORT": admin_port, "KEY_FILE": str(keys[key])}
        return foldserve(*arguments, env={f"FOLDSERVE_{name}": value for name, value in settings.items()})

    return run


_lines: dict[int, str] = {}


def _admin_port(served: Served) -> str:
    """Read the admin port from the server's announcement.

    `_lines` keeps the port, because the announcement can be read only once.
    """
    if served.port not in _lines:
        assert served.process.stdout
        _lines[served.port] = served.process.stdout.readline().rpartition(":")[2].strip()
    return _lines[served.port]


def test_the_list_has_every_version_with_its_figures(served: Served, command: Command, keys: dict[str, Path]) -> None:
    key = f"X-API-Key: {keys['weak'].read_text().strip()}"
    for _ in range(5):
        assert served.send("POST", "/predict", key, body=BODY).status == 200
    first, second = json.loads(command("models", "--json").stdout)["models"]
    assert (first["model"], first["version"], first["state"], first["current"]) == ("roots", 1, "ready", False)
    assert (second["version"], second["current"], second["provider"]) == (2, True, "CPUExecutionProvider")
    assert 0 < second["p99_seconds"] < 10
    assert 0 <= second["parity"] < 1
    title, *lines = command("models").stdout.splitlines()
    assert title.split() == ["model", "version", "state", "provider", "rows/s", "p99", "ms", "parity"]
    assert [line.split()[:4] for line in lines] == [["roots", "1", "ready", "CPU"], ["roots", "2", "ready", "CPU"]]
    assert lines[1].split()[-1] == "answers"


def test_a_rollback_and_a_promotion_take_one_command(command: Command) -> None:
    assert command("rollback", "roots").stdout.splitlines()[0] == "roots: version 1 answers"
    assert command("promote", "roots", 2).stdout.splitlines()[0] == "roots: version 2 answers"


def test_a_model_is_unloaded_and_loaded(command: Command) -> None:
    assert command("unload", "roots").stdout == "roots: no version answers\n"
    assert command("load", "roots").stdout == "roots: version 2 answers\n"


def test_a_refused_command_prints_one_line(command: Command, served: Served, tmp_path: Path) -> None:
    refused = {
        ("rollback", "roots", 7): "the server answers 404: unknown version of this model",
        ("load", "nope"): "the server answers 404: unknown model",
    }
    for arguments, line in refused.items():
        assert_refused_in_one_line(command(*arguments), line)
    assert_refused_in_one_line(command("load", "roots", key="weak"), "403: this API key lacks the scope admin")
    assert_refused_in_one_line(command("models", "--key-file", tmp_path / "none"), "can't read the API key in")
    assert_refused_in_one_line(command("models", "--url", "ftp://x"), "the URL is not http://HOST:PORT")
    assert_refused_in_one_line(command("models", "--url", f"http://127.0.0.1:{served.port}"), "404: Not Found")
