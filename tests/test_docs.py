"""The docs name files, modules, targets and layers that exist. Other tests check the claims of each page."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md"), ROOT / "benchmarks/README.md"]
)
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?://)([^)]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@each_page
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    named = re.findall(
        r"`((?:service|training|foldserve|tests|docs|deploy|benchmarks|examples|requirements)/[\w./-]*)`", text
    )
    assert [name for name in named if not (ROOT / name).exists()] == []


@each_page
def test_every_target_of_make_that_a_page_names_exists(page: Path) -> None:
    named = set(re.findall(r"`make ([a-z-]+)", page.read_text(encoding="utf-8")))
    assert {name for name in named if not re.search(rf"^{name}:", MAKEFILE, re.M)} == set()


@pytest.mark.parametrize("package", ["service", "training"])
def test_the_architecture_lists_every_room_and_module(package: str) -> None:
    (table,) = re.findall(rf"^\| room of `{package}/` .*\n\| ---.*\n((?:\|.*\n)+)", ARCHITECTURE, re.M)
    rooms: dict[str, set[str]] = {}
    for row in table.splitlines():
        names, _, modules = re.split(r" \| ?", row.strip("| ") + " |", maxsplit=2)
        for room in re.findall(r"`(\w+)`", names):
            rooms[room] = set(re.findall(r"`(\w+)`", modules))
    assert rooms == {
        entry.stem: {
            member.stem
            for member in (entry.iterdir() if entry.is_dir() and entry.name != "web" else ())
            if not member.name.startswith("__") and (member.is_dir() or member.suffix == ".py")
        }
        for entry in (ROOT / package).iterdir()
        if not entry.name.startswith("__") and (entry.is_dir() or entry.suffix == ".py")
    }, "update the tables of rooms in docs/architecture.md"


def test_the_architecture_lists_every_module_of_the_api() -> None:
    (table,) = re.findall(r"^\| module of `foldserve/api/` .*\n\| ---.*\n((?:\|.*\n)+)", ARCHITECTURE, re.M)
    listed = {name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split(" | ")[0])}
    assert listed == {file.stem for file in (ROOT / "foldserve" / "api").glob("[!_]*.py")}


def test_the_hooks_of_pre_commit_run_targets_of_make() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    entries = [hook["entry"].removeprefix("make ") for hook in local["hooks"]]
    assert entries == ["format", "lint"]
    assert all(re.search(rf"^{target}: install", MAKEFILE, re.M) for target in entries)


def test_make_help_lists_every_target_for_people() -> None:
    phony = " ".join(re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.M))
    assert set(phony.split()) == set(re.findall(r"^([a-z-]+):.* ## ", MAKEFILE, re.M))


def test_the_editor_and_the_formatter_use_the_same_line_length() -> None:
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]
    assert f"max_line_length = {ruff['line-length']}\n" in (ROOT / ".editorconfig").read_text(encoding="utf-8")
