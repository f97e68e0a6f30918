"""Finds the index that pandas stores beside the columns of a Parquet or Arrow file.

The index is not a column of the table.
"""

from __future__ import annotations

import json
import re

import pyarrow as pa

# If an index has no name, pandas stores it as a column with a name of this form.
_UNNAMED = re.compile(r"__index_level_\d+__")


def without_index(schema: pa.Schema) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the columns without pandas's index, and a note if there was an index."""
    metadata = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))
    index = {name for name in metadata.get("index_columns", ()) if isinstance(name, str)}
    index |= {name for name in schema.names if _UNNAMED.fullmatch(name)}
    left_out = [name for name in schema.names if name in index]
    if not left_out:
        return tuple(schema.names), ()
    named = ", ".join(repr(name) for name in left_out if not _UNNAMED.fullmatch(name))
    note = f"the index that pandas stored{f', {named},' if named else ''} was left out"
    return tuple(name for name in schema.names if name not in index), (note,)
