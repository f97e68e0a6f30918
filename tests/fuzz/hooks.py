"""Give schemathesis request bodies that a schema can't describe: raw float32 rows of the digits."""

from __future__ import annotations

import schemathesis.openapi
from hypothesis import strategies as st

_ROW = 64 * 4  # the number of bytes in a row of digits, which has 64 features
schemathesis.openapi.media_type("application/octet-stream", st.integers(1, 3).map(lambda rows: bytes(rows * _ROW)))
