"""Both modules named `errors.py` draw a tree of their errors in the docstring.

For each error, the tree names exactly the modules that raise the error.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import foldserve

PACKAGE = Path(foldserve.__file__).parent

# A line of the tree is "├── Name module.py, room/: the reason". If only subclasses of an error are raised, its line in
# the tree names no modules.
LINE = re.compile(r"^(?P<branch>[│ ]*[├└]── )?(?P<name>\w+) {2,}(?:(?P<sites>[\w./, ]+(?:\.py|/)): )?\S.*$")


def error_classes(package: str) -> dict[str, type[Exception]]:
    module = importlib.import_module(f"foldserve.{package}.errors")
    return {
        name: found
        for name, found in vars(module).items()
        if isinstance(found, type) and issubclass(found, Exception) and found.__module__ == module.__name__
    }


def tree(package: str) -> dict[str, re.Match[str]]:
    """Return the lines of the tree as a dictionary whose keys are the names of the errors."""
    doc = importlib.import_module(f"foldserve.{package}.errors").__doc__ or ""
    found = filter(None, map(LINE.match, doc.splitlines()))
    return {line["name"]: line for line in found}


def created(file: Path) -> Iterator[str]:
    """Yield the name of each class that `file` calls, or that it raises without a call.

    A module may create an error that another module raises, or that is passed to a callback. The test looks for the
    module that creates the error.
    """
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        target = node.func if isinstance(node, ast.Call) else node.exc if isinstance(node, ast.Raise) else None
        if isinstance(target, ast.Name):
            yield target.id
        elif isinstance(target, ast.Attribute):
            yield target.attr


def raise_sites(package: str) -> dict[str, set[str]]:
    """Map the name of each error to the modules of the package that create this error."""
    folder = PACKAGE / package
    sites: dict[str, set[str]] = {name: set() for name in error_classes(package)}
    for file in sorted(folder.rglob("*.py")):
        for name in sites.keys() & set(created(file)):
            sites[name].add(file.relative_to(folder).as_posix())
    return sites


@pytest.mark.parametrize("package", ["service", "training"])
def test_the_tree_shows_each_error_below_its_base(package: str) -> None:
    above: list[tuple[int, str]] = [(-1, "Exception")]
    bases = {}
    for name, line in tree(package).items():
        depth = line.start("name")
        while above[-1][0] >= depth:
            above.pop()
        bases[name] = above[-1][1]
        above.append((depth, name))
    assert bases == {name: kind.__base__.__name__ for name, kind in error_classes(package).items() if kind.__base__}


@pytest.mark.parametrize("package", ["service", "training"])
def test_the_tree_names_the_modules_that_raise_each_error(package: str) -> None:
    for name, sites in raise_sites(package).items():
        named = (tree(package)[name]["sites"] or "").split(", ") if tree(package)[name]["sites"] else []
        unnamed = {site for site in sites if not any(site == place or site.startswith(place) for place in named)}
        assert not unnamed, f"{unnamed} raises {name}, and the tree of {package}/errors.py does not name it"
        for place in named:
            assert any(site == place or (place.endswith("/") and site.startswith(place)) for site in sites), (
                f"the tree of {package}/errors.py names {place}, which does not raise {name}"
            )
