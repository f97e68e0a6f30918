"""Reading: how the text of one cell becomes a value.

Training chooses a reading for each column, and the service uses the same reading. This module handles one text at a
time, and does not depend on files or columns. The patterns in this module use only syntax that both Python's `re` and
RE2 have, so Arrow can apply them to a whole column.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property
from typing import Literal

from foldserve.service.bundle.parity import FrozenModel

Decimal = Literal[".", ","]
Thousands = Literal["", ",", ".", " ", "'"]

# The spellings of a boolean column, in lower case.
FALSE = ("false", "0", "0.0", "no", "n", "f", "off")
TRUE = ("true", "1", "1.0", "yes", "y", "t", "on")

# White space that occurs in numbers. The list includes the no-break, figure, thin and narrow no-break space.
_SPACES = " \t\n\r\f\v\u00a0\u2007\u2009\u202f"
_MINUS = "\u2212"
_SEPARATORS = {"": "", ",": ",", ".": "[.]", " ": "[ \u00a0\u2007\u2009\u202f]", "'": "['\u2019]"}
_SPECIAL = "[+-]?(?:[nN][aA][nN]|[iI][nN][fF](?:[iI][nN][iI][tT][yY])?)"


# A date or time of ISO 8601, without blanks around the text.
MOMENT_PATTERN = (
    "[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:[.][0-9]{1,9})?)?(?:Z|[+-][0-9]{2}:?[0-9]{2})?)?"
)
_MOMENT = re.compile(MOMENT_PATTERN)
# float32 represents every whole number up to this limit exactly.
MAX_MOMENT = 2**24


class Reading(FrozenModel):
    """How the text of a cell becomes a value.

    With the default settings, numbers are read as Python writes them: -1234.5, 1e3, nan.

    missing: texts that mean a missing value. A blank text always means a missing value. Blanks around a text are
    ignored. In a column of numbers, these texts are also compared as numbers: if -999 means a missing value, then
    -999.0 means one too.
    decimal, thousands: the decimal mark and the thousands separator of a number; "" means no separator. If the
    separator is a blank, any other kind of space is accepted too. If the separator is an apostrophe, a typographic
    apostrophe is accepted too.
    unit: a currency or `%`, on either side of the number. The unit does not change the value: the text 45% becomes 45.
    accounting: whether parentheses mean a negative number, so that (12.50) is -12.5.
    true, false: the spellings of a boolean column, in lower case.
    step, origin: a date or time becomes the number of whole days or hours since midnight of `origin`. zoned: whether
    the texts have a time zone. Times with a time zone are converted to UTC.
    """

    missing: tuple[str, ...] = ()
    decimal: Decimal = "."
    thousands: Thousands = ""
    unit: str = ""
    accounting: bool = False
    true: tuple[str, ...] = ()
    false: tuple[str, ...] = ()
    step: Literal["day", "hour"] = "day"
    origin: date = date(1970, 1, 1)
    zoned: bool = False

    def is_missing(self, text: str) -> bool:
        """Whether `text` means a missing value."""
        bare = text.strip()
        return not bare or bare in self.missing or text in self.missing

    def number(self, text: str) -> float | None:
        """Convert a text to its number; None for a missing value. Raises `ValueError` for any other text."""
        if self.is_missing(text):
            return None
        if not self._number.fullmatch(text.strip()):
            raise ValueError("not a number")
        value = float(self.plain_number(text))
        if math.isinf(value):
            raise ValueError("infinite")
        return self.known_number(value)

    def plain_number(self, text: str) -> str:
        """Convert the text of a number from the notation of the column to Python's notation."""
        plain = text.strip()
        for pattern, replacement in self._compiled_rewrites:
            plain = pattern.sub(replacement, plain)
        return plain

    def known_number(self, value: float) -> float | None:
        """Return `value`, or None if it is NaN or a number that means a missing value."""
        return None if math.isnan(value) or value in self.missing_numbers else value

    def boolean(self, text: str) -> bool | None:
        """Convert a text to its boolean; None for a missing value. Raises `ValueError` for any other text."""
        if self.is_missing(text):
            return None
        spelling = text.strip().lower()
        if spelling in self.true or spelling in self.false:
            return spelling in self.true
        raise ValueError("not a boolean")

    def moment(self, text: str) -> float | None:
        """Convert the text of a date or time to its number; None for a missing value.

        Raises `ValueError` for any other text. Also raises `ValueError` if the text has a time zone but the column does
        not, or the reverse.
        """
        if self.is_missing(text):
            return None
        if not _MOMENT.fullmatch(text.strip()):
            raise ValueError("not a date or time of ISO 8601")
        moment = datetime.fromisoformat(text.strip())
        if (moment.tzinfo is not None) != self.zoned:
            raise ValueError("a time zone is missing, or not expected")
        try:
            since = moment.astimezone(UTC).replace(tzinfo=None) if self.zoned else moment
        except OverflowError as error:
            raise ValueError("not a date or time") from error
        number = (since - self._origin) // self._step
        if abs(number) > MAX_MOMENT:
            raise ValueError("too far from the origin")
        return float(number)

    def moment_text(self, number: float) -> str:
        """Convert the number of a date or time to a text in ISO 8601."""
        moment = self._origin + number * self._step
        text = moment.date().isoformat() if self.step == "day" and not self.zoned else moment.isoformat()
        return f"{text}Z" if self.zoned else text

    @property
    def _origin(self) -> datetime:
        return datetime.combine(self.origin, time())

    @property
    def _step(self) -> timedelta:
        return timedelta(days=1) if self.step == "day" else timedelta(hours=1)

    @cached_property
    def missing_numbers(self) -> tuple[float, ...]:
        """The numbers that mean a missing value."""
        plain = re.compile(PLAIN.number_pattern)
        values = [float(text) for text in self.missing if plain.fullmatch(text.strip())]
        return tuple(value for value in values if not math.isnan(value))

    @property
    def is_plain(self) -> bool:
        """Whether numbers have only a decimal point: no thousands separator, no unit and no parentheses."""
        return (self.decimal, self.thousands, self.unit, self.accounting) == (".", "", "", False)

    @property
    def number_pattern(self) -> str:
        """A regular expression for the complete text of a number, without the blanks around the text."""
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
        # A number without a % sign is ambiguous, because 0.45 may mean 45%. Only the number 0 is accepted without a %
        # sign.
        if self.unit == "%":
            inner = f"(?:{sign}?{space}{digits}{'|[(]' + space + digits + space + '[)]' if self.accounting else ''})"
            closed = f"|[(]{space}{digits}{space}%{space}[)]" if self.accounting else ""
            return f"{_SPECIAL}|{inner}{space}%|{sign}?{space}%{space}{inner}{closed}|{sign}?0+(?:{point}0*)?"
        before, after = f"(?:{unit}{space})?", f"(?:{space}{unit})?"
        parentheses = f"|{before}[(]{space}{before}{digits}{after}{space}[)]{after}" if self.accounting else ""
        return f"{_SPECIAL}|(?:{sign}?{space}{before}|{before}{sign}){digits}{after}{parentheses}"

    @property
    def number_rewrites(self) -> tuple[tuple[str, str], ...]:
        """Regular expressions, each with a replacement.

        The replacements turn the text of a number into a text that `float` accepts.
        """
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
