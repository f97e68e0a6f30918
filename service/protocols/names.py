"""Matches the names of a request with the columns of a model: features, columns that training left out, constants.

Each protocol that names columns uses this module, so that all protocols give the same errors. This module does not read
the values of a request.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from foldserve.service.bundle import Manifest
from foldserve.service.errors import InvalidInput
from foldserve.service.protocols.categories import JsonValue, json_value

# An error names an unknown member only if its name is at most this long.
_MAX_NAME = 40


class ColumnNames:
    """The names of one model.

    features: the names that a request may have, in the order of the model. constants: the value of each feature that
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
        """Return the names that training left out, and the constant features that `names` lacks.

        where: the part of the request that has the names, for the message. Raises `InvalidInput` for any other
        difference.
        """
        given = set(names)
        ignored, filled = given - self.set, set(self.set - given)
        if not (ignored <= self._left_out and filled <= self.constants.keys()):
            raise InvalidInput(self._misfit(names, given, where))
        return ignored, filled

    def _misfit(self, names: Iterable[str], given: set[str], where: str) -> str:
        """Return a text that names the first missing feature and the first unknown name."""
        lacking = next((name for name in self.features if name not in given and name not in self.constants), None)
        known = self.set | self._left_out
        unknown = next(((place, name) for place, name in enumerate(names) if name not in known), None)
        text = where if lacking is None else f"{where} lacks the feature {lacking!r}"
        if unknown is None:
            return text
        return f"{text}{'' if lacking is None else ', and'} has an unknown member, {_printable(*unknown)}"


def _printable(place: int, name: str) -> str:
    """Return the name of a member if it is short and plain, and otherwise its place in the object.

    A message repeats no values of a request. The name of a member is not a value, and people need it to find a
    misspelt name. Only letters, digits, blanks and the characters _-. are repeated. So a message can't carry markup,
    control characters or a long text.
    """
    plain = len(name) <= _MAX_NAME and all(letter.isalnum() or letter in " _-." for letter in name)
    return repr(name) if plain and name.strip() else f"number {place + 1}"
