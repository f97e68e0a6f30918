"""The project installs one name, `foldserve`: from the repository, from a wheel, and from an sdist.

Each installation has a separate environment, which uses the dependencies of the test environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from mypy.main import process_options

from tests.service.support import PATIENCE

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "models" / "digits" / "1"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def package_files() -> set[str]:
    """Return the name that each file of the package has in a wheel."""
    linked = (file for name in ("service", "training") for file in (ROOT / name).rglob("*"))
    own = ((ROOT / "foldserve").iterdir(), (ROOT / "foldserve" / "api").iterdir())
    files = (file for file in (*linked, *own[0], *own[1]) if file.is_file())
    paths = {str(file.relative_to(ROOT)) for file in files if "__pycache__" not in file.parts}
    return {f"foldserve/{path.removeprefix('foldserve/')}" for path in paths}


def run(*command: object, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command without this process's Python path and settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FOLDSERVE_"))}
    return subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env=kept | dict(env or {}),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def succeed(*command: object, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    """Run a command that must exit with 0; return its standard output."""
    done = run(*command, cwd=cwd, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- the wheel and the sdist -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("sdist")
    succeed(sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", built, cwd=ROOT)
    return built / f"foldserve-{VERSION}.tar.gz"


def build_wheel(source: Path, built: Path) -> Path:
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    succeed(sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", built, source, cwd=built)
    return built / f"foldserve-{VERSION}-py3-none-any.whl"


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that pip builds from the sdist."""
    return build_wheel(sdist, tmp_path_factory.mktemp("wheel"))


def test_the_sdist_holds_files_and_no_links(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert all(member.isfile() for member in members)
    names = {member.name.removeprefix(f"foldserve-{VERSION}/") for member in members}
    assert {"pyproject.toml", "README.md", "LICENSE", "foldserve/service/cli.py", "foldserve/training/cli.py"} <= names
    assert not [name for name in names if name.startswith(("service/", "training/", "tests/"))]


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0] for name in names} == {"foldserve", f"foldserve-{VERSION}.dist-info"}
    assert {name for name in names if name.startswith("foldserve/")} == package_files()
    licences = {name.partition("/licenses/")[2] for name in names if "/licenses/" in name}
    assert licences - {""} == {
        "LICENSE",
        "foldserve/service/web/swagger-ui/LICENSE",
        "foldserve/service/web/swagger-ui/NOTICE",
    }


def test_the_repository_builds_the_same_wheel_as_the_sdist(wheel: Path, tmp_path: Path) -> None:
    def content(file: Path) -> dict[str, bytes]:
        with zipfile.ZipFile(file) as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    assert content(build_wheel(ROOT, tmp_path)) == content(wheel)


# --- installed environments ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Installed:
    """An environment with foldserve installed."""

    bin: Path


def install(folder: Path, *what: object) -> Installed:
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install")
    succeed(*pip, "--no-deps", "--no-build-isolation", "--no-index", "--no-compile", *what, cwd=folder)
    return Installed(folder / "bin")


@pytest.fixture(scope="module", params=["wheel", "editable"])
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    what = [request.getfixturevalue("wheel")] if request.param == "wheel" else ["--editable", ROOT]
    return install(tmp_path_factory.mktemp(request.param), *what)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's project: a table, and packages `service` and `training` that raise an error on import."""
    for name in ("service", "training"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the user\\'s own package')", encoding="utf-8")
    rows = [f"{a},{b},{'big' if a * b > 20 else 'small'}" for a in range(15) for b in range(15)]
    (tmp_path / "areas.csv").write_text("\n".join(["width,height,size", *rows, ""]), encoding="utf-8")
    (tmp_path / "models").mkdir()
    return tmp_path


def test_both_commands_work_beside_folders_named_service_and_training(installed: Installed, project: Path) -> None:
    path = {"PYTHONPATH": str(project)}
    succeed(installed.bin / "foldserve-train", "fit", "areas.csv", "--epochs", "2", cwd=project, env=path)
    assert "areas/1 is the model" in succeed(
        installed.bin / "foldserve", "verify", "models/areas/1", cwd=project, env=path
    )


def test_workers_start_beside_folders_named_service_and_training(installed: Installed, project: Path) -> None:
    command = [installed.bin / "foldserve", "serve", "--models", DIGITS.parents[1], "--port", "0", "--workers", "2"]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FOLDSERVE_"))}
    with subprocess.Popen(
        [*map(str, command)], cwd=project, env=env | {"PYTHONPATH": str(project)}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert " serves " in process.stdout.readline()
        process.terminate()
        assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize("module", ["foldserve", "foldserve.service.cli", "foldserve.training.cli"])
def test_importing_foldserve_imports_no_folder_of_the_user(installed: Installed, project: Path, module: str) -> None:
    code = f"import {module}, sys; print(sorted({{'service', 'training'}} & set(sys.modules)))"
    assert succeed(installed.bin / "python", "-c", code, cwd=project) == "[]\n"


def test_an_installation_adds_only_the_name_foldserve(installed: Installed, tmp_path: Path) -> None:
    code = "from importlib.util import find_spec; print([find_spec(name) for name in ('service', 'training', 'tests')])"
    assert succeed(installed.bin / "python", "-c", code, cwd=tmp_path) == "[None, None, None]\n"


# --- the repository --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["service", "training"])
def test_importing_a_folder_of_the_repository_by_itself_is_refused(name: str) -> None:
    done = run(sys.executable, "-c", f"import {name}", cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.endswith(f"ImportError: {name}/ is the folder of foldserve.{name}: import that instead\n"), (
        done.stderr
    )


@pytest.mark.parametrize(("module", "command"), [("service", "foldserve"), ("training", "foldserve-train")])
def test_python_m_is_the_command_in_the_repository(module: str, command: str) -> None:
    path = {"PYTHONPATH": str(ROOT)}
    printed = [
        succeed(sys.executable, "-m", name, "--help", cwd=ROOT, env=path) for name in (module, f"foldserve.{module}")
    ]
    assert printed[0] == printed[1]
    assert printed[0].startswith(f"usage: {command} ")


def test_mypy_checks_every_module_once_under_its_installed_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    sources, _ = process_options([])
    files = [Path(source.path).resolve() for source in sources if source.path]
    # The sources include folders without __init__.py, and the stub of a generated module.
    checked = [file.with_suffix(".py") for file in files if file.suffix in (".py", ".pyi")]
    assert len(checked) == len(set(checked))
    assert set(checked) == {(ROOT / name).resolve() for name in package_files() if name.endswith(".py")}
    assert all(source.module.split(".")[0] == "foldserve" for source in sources)
