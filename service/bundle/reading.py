"""Reading: how the text of one cell becomes a value. Training chooses it for each column; the service repeats it.

It knows one text at a time, no file and no column. The patterns are the common part of the syntaxes of Python's `re`
and of RE2, so that Arrow can apply them to a whole column.
"""

from __future__ import annotations

import math
import re
from functools import cached_property
from typing import Literal

from foldserve.service.bundle.parity import FrozenModel

Decimal = Literal[".", ","]
Thousands = Literal["", ",", ".", " ", "'"]

# The spellings of a boolean column, in lower case.
FALSE = ("false", "0", "0.0", "no", "n", "f", "off")
TRUE = ("true", "1", "1.0", "yes", "y", "t", "on")

# White space that occurs in numbers: with the no-break, figure, thin and narrow no-break space.
_SPACES = " \t\n\r\f\v\u00a0\u2007\u2009\u202f"
_MINUS = "\u2212"
_SEPARATORS = {"": "", ",": ",", ".": "[.]", " ": "[ \u00a0\u2007\u2009\u202f]", "'": "['\u2019]"}
_SPECIAL = "[+-]?(?:[nN][aA][nN]|[iI][nN][fF](?:[iI][nN][iI][tT][yY])?)"


class Reading(FrozenModel):
    """How the text of a cell becomes a value. The default reads numbers as Python writes them: -1234.5, 1e3, nan.

    missing: texts that mean a missing value, besides a blank text; blanks around them are ignored. In a column of
    numbers, a number that is equal to one of them is missing too.
    decimal, thousands: the marks of a number; "" is no thousands separator. A blank stands for any space, an
    apostrophe for a typographic one.
    unit: a currency or `%`, which may stand on either side of the number. The value is the written number: 45% is 45.
    accounting: whether parentheses mean a negative number: (12.50) is -12.5.
    true, false: the spellings of a boolean column, in lower case.
    """

    missing: tuple[str, ...] = ()
    decimal: Decimal = "."
    thousands: Thousands = ""
    unit: str = ""
    accounting: bool = False
    true: tuple[str, ...] = ()
    false: tuple[str, ...] = ()

    def is_missing(self, text: str) -> bool:
        """Whether `text` means a missing value."""
        bare = text.strip()
        return not bare or bare in self.missing or text in self.missing

    def number(self, text: str) -> float | None:
        """Return the number that `text` writes; None for a missing value. Raises `ValueError` for any other text."""
        if self.is_missing(text):
            return None
        if not self._number.fullmatch(text.strip()):
            raise ValueError("not a number")
        value = float(self.plain_number(text))
        if math.isinf(value):
            raise ValueError("infinite")
        return self.known_number(value)

    def plain_number(self, text: str) -> str:
        """Return a number of this notation as Python writes it."""
        plain = text.strip()
        for pattern, replacement in self._compiled_rewrites:
            plain = pattern.sub(replacement, plain)
        return plain

    def known_number(self, value: float) -> float | None:
        """Return `value`, or None if it is NaN or a number that means a missing value."""
        return None if math.isnan(value) or value in self.missing_numbers else value

    def boolean(self, text: str) -> bool | None:
        """Return the boolean that `text` spells; None for a missing value. Raises `ValueError` for any other text."""
        if self.is_missing(text):
            return None
        spelling = text.strip().lower()
        if spelling in self.true or spelling in self.false:
            return spelling in self.true
        raise ValueError("not a boolean")

    @cached_property
    def missing_numbers(self) -> tuple[float, ...]:
        """The numbers that mean a missing value."""
        plain = re.compile(PLAIN.number_pattern)
        values = [float(text) for text in self.missing if plain.fullmatch(text.strip())]
        return tuple(value for value in values if not math.isnan(value))

    @property
    def is_plain(self) -> bool:
        """Whether a number has no marks but a decimal point."""
        return (self.decimal, self.thousands, self.unit, self.accounting) == (".", "", "", False)

    @property
    def number_pattern(self) -> str:
        """The regular expression that a whole number matches, without the blanks around it."""
        point = re.escape(self.decimal)
        whole = "[0-9]+"
        if self.thousands:
            whole = f"(?:[1-9][0-9]{{0,2}}(?:{_SEPARATORS[self.thousands]}[0-9]{{3}})+|[0-9]+)"
        digits = f"(?:{whole}(?:{point}[0-9]*)?|{point}[0-9]+)(?:[eE][+-]?[0-9]+)?"
        sign = f"[+{_MINUS}-]"
        if not self.unit:
            parentheses = f"|[(]{digits}[)]" if self.accounting else ""
            return f"{_SPECIAL}|{sign}?{digits}{parentheses}"
        space, unit = f"[{_SPACES}]*", re.escape(self.unit)
        before, after = f"(?:{unit}{space})?", f"(?:{space}{unit})?"
        parentheses = f"|{before}[(]{space}{before}{digits}{after}{space}[)]{after}" if self.accounting else ""
        return f"{_SPECIAL}|(?:{sign}?{space}{before}|{before}{sign}){digits}{after}{parentheses}"

    @property
    def number_rewrites(self) -> tuple[tuple[str, str], ...]:
        """The regular expressions, each with its replacement, that turn such a number into a text for `float`."""
        if self.is_plain:
            return ((_MINUS, "-"),)
        parts = [f"[{_SPACES}]"]
        parts += [_SEPARATORS[self.thousands]] if self.thousands else []
        parts += [re.escape(self.unit)] if self.unit else []
        rewrites = [("|".join(parts), ""), (_MINUS, "-")]
        rewrites += [("^[(](.*)[)]$", r"-\1")] if self.accounting else []
        rewrites += [(",", ".")] if self.decimal == "," else []
        return tuple(rewrites)

    @cached_property
    def _number(self) -> re.Pattern[str]:
        return re.compile(self.number_pattern)

    @cached_property
    def _compiled_rewrites(self) -> tuple[tuple[re.Pattern[str], str], ...]:
        return tuple((re.compile(pattern), replacement) for pattern, replacement in self.number_rewrites)


PLAIN = Reading()
"""The reading of numbers without marks."""
