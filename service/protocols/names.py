"""Matches the column names of a request with the columns of a model.

The columns of a model are features, constants, and columns that training left out. Every protocol whose requests name
columns uses this module, so that all protocols give the same errors. This module does not read the values of a request.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from foldserve.service.bundle import Manifest
from foldserve.service.errors import InvalidInput
from foldserve.service.protocols.categories import JsonValue, json_value

# An error message contains the name of an unknown member only if the name has at most this many characters.
_MAX_NAME = 40


class ColumnNames:
    """The column names of one model.

    features: the names of the features, in the order of the model's inputs. constants: the value of each feature that
    had only one value in training; a request may leave these features out.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.features = tuple(feature.name for feature in manifest.features)
        self.constants: dict[str, JsonValue] = {
            feature.name: json_value(feature, feature.constant)
            for feature in manifest.features
            if feature.constant is not None
        }
        self.set = frozenset(self.features)
        self._left_out = frozenset(manifest.ignored)

    def match(self, names: Collection[str], where: str) -> tuple[set[str], set[str]]:
        """Return the given names that training left out, and the constant features that are not in `names`.

        where: a text that tells which part of the request contains the names, for the error message. Raises
        `InvalidInput` if `names` and the features differ in any other way.
        """
        given = set(names)
        ignored, filled = given - self.set, set(self.set - given)
        if not (ignored <= self._left_out and filled <= self.constants.keys()):
            raise InvalidInput(self._misfit(names, given, where))
        return ignored, filled

    def _misfit(self, names: Iterable[str], given: set[str], where: str) -> str:
        """Return an error text with the first missing feature and the first unknown name."""
        lacking = next((name for name in self.features if name not in given and name not in self.constants), None)
        known = self.set | self._left_out
        unknown = next(((place, name) for place, name in enumerate(names) if name not in known), None)
        text = where if lacking is None else f"{where} lacks the feature {lacking!r}"
        if unknown is None:
            return text
        return f"{text}{'' if lacking is None else ', and'} has an unknown member, {_printable(*unknown)}"


def _printable(place: int, name: str) -> str:
    """Return the name of a JSON member if the name is short and plain; otherwise, return the number of the member.

    An error message never repeats a value of a request. The name of a member is not a value, and users need the name to
    find a spelling mistake. A plain name has only letters, digits, blanks, `_`, `-` and `.`, so a message never
    contains markup or control characters.
    """
    plain = len(name) <= _MAX_NAME and all(letter.isalnum() or letter in " _-." for letter in name)
    return repr(name) if plain and name.strip() else f"number {place + 1}"
