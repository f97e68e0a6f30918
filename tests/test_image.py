"""Tests the Dockerfile and the lists in requirements/, which define the contents of the images. No test here builds an
image.

`make image-check` builds and runs the images (tests/image).
"""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
# The extras of pyproject.toml that each list of requirements contains. torch has a separate list, because it comes from
# a separate index.
LISTS = {"cpu": ("cpu",), "gpu": ("gpu",), "train": ("cpu", "train", "tune")}
TRAINER_ONLY = {"torch", "scikit-learn", "scipy", "pyarrow", "optuna"}


def locked(name: str) -> dict[str, tuple[Version, list[str]]]:
    """Return the packages of a list, each with its version and hashes. Any other line in the list is an error."""
    found: dict[str, tuple[Version, list[str]]] = {}
    package = ""
    for line in (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        text = line.split("#")[0].strip().removesuffix("\\").strip()
        if not text:
            continue
        if text.startswith("--hash=sha256:"):
            assert re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", text)
            found[package][1].append(text)
            continue
        match = re.fullmatch(r"([a-z0-9.-]+)==([^\s;]+)( ; sys_platform == 'win32')?", text)
        assert match, f"{name}.txt: {line}"
        package = match[1]
        found[package] = (Version(match[2]), [])
    assert found
    return found


def pinned() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(package): Version(number) for package, number in pins}


def declared(name: str) -> list[Requirement]:
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    return [
        Requirement(text)
        for text in [*project["dependencies"], *(each for extra in LISTS[name] for each in extras[extra])]
    ]


@pytest.mark.parametrize("name", LISTS)
def test_a_list_has_an_allowed_version_of_each_declared_package(name: str) -> None:
    packages = locked(name)
    for requirement in declared(name):
        if requirement.name != "torch":
            assert packages[canonicalize_name(requirement.name)][0] in requirement.specifier


@pytest.mark.parametrize("name", LISTS)
def test_a_list_has_every_package_that_its_packages_require(name: str) -> None:
    """The test does not follow the requirements of packages that are not installed. Only one of the two ONNX Runtime
    wheels is installed here.
    """
    packages, reached = locked(name), set()
    waiting = [(requirement.name, frozenset(requirement.extras)) for requirement in declared(name)]
    while waiting:
        package, extras = waiting.pop()
        if (package, extras) in reached:
            continue
        reached.add((package, extras))
        assert canonicalize_name(package) in {*packages, "torch"}
        try:
            needs = [Requirement(text) for text in requires(package) or ()]
        except PackageNotFoundError:
            continue
        if package == "torch" and Version(version("torch")).local != "cpu":
            continue
        waiting += [
            (need.name, frozenset(need.extras))
            for need in needs
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in {"", *extras})
        ]


@pytest.mark.parametrize("name", [*LISTS, "build", "torch"])
def test_every_package_of_a_list_has_hashes(name: str) -> None:
    assert all(hashes for _, hashes in locked(name).values())


@pytest.mark.parametrize("name", [*LISTS, "build"])
def test_a_list_has_the_versions_of_the_constraints(name: str) -> None:
    pins = pinned()
    for package, (number, _) in locked(name).items():
        assert number == pins.get(package, number), package


def test_a_service_has_one_runtime_and_no_package_of_the_trainer() -> None:
    cpu, gpu = set(locked("cpu")), set(locked("gpu"))
    assert ("onnxruntime" in cpu, "onnxruntime-gpu" in cpu) == (True, False)
    assert ("onnxruntime" in gpu, "onnxruntime-gpu" in gpu) == (False, True)
    assert not (cpu | gpu) & TRAINER_ONLY
    assert not any(package.startswith("nvidia-") for package in cpu | set(locked("train")))
    assert not any("cudnn" in package for package in gpu)


def test_torch_is_the_cpu_build_of_the_constrained_version() -> None:
    assert {package: number for package, (number, _) in locked("torch").items()} == {
        "torch": Version(f"{pinned()['torch']}+cpu")
    }


def test_the_wheel_is_built_with_the_declared_packages() -> None:
    packages = locked("build")
    for requirement in map(Requirement, PROJECT["build-system"]["requires"]):
        assert packages[requirement.name][0] in requirement.specifier


# --- the Dockerfile --------------------------------------------------------------------------------------------------


def test_the_base_image_has_an_exact_tag_and_the_python_of_the_lists() -> None:
    base = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE)[1]
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm(@sha256:[0-9a-f]{64})?", base)
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)
    assert {image for image, _ in stages} <= {"${PYTHON_IMAGE}", "base"}
    assert stages[-1] == ("base", "service")


def test_every_copied_path_exists_and_is_on_the_allow_list() -> None:
    allowed = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }
    copied = re.findall(r"^COPY (?!--from)(?:--\S+ )*(.+) \S+$", DOCKERFILE, re.MULTILINE)
    sources = {source for line in copied for source in line.split()}
    assert {source.split("/")[0] for source in sources} == allowed
    for source in sources:
        runtimes = [source.replace("${RUNTIME}", runtime) for runtime in ("cpu", "gpu")]
        assert all((ROOT / runtime).exists() for runtime in runtimes)


def test_an_image_built_without_arguments_has_the_label_of_this_version() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert set(re.findall(r"^ARG VERSION=(.*)$", text, re.M)) == {PROJECT["project"]["version"]}
