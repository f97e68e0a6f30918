"""Sources: read a file, and return its columns of cells in the order of the table.

Training reads a whole file as a `Source`, and scoring reads a `Stream` of batches.

    read.py         chooses the reader by the file's name and checks the file's first bytes
    delimited.py    .csv, .tsv and .txt, also with .gz: every cell is a text; an empty cell is a missing value
    dialect.py      the encoding and the separator of such a file
    spreadsheet.py  .xlsx: one sheet
    parquet.py      .parquet: each column has its own type
    arrow.py        .arrow, .feather and .ipc: the same
    json_lines.py   .jsonl and .ndjson, also with .gz: the same
    pandas_index.py the index that pandas stores beside the columns
    arrays.py       .npz: two arrays, [rows, features] and [rows]
    join.py         several files as one source
    source.py       the result of every reader, and the checks that all readers share

The sources do not depend on the target or on the kinds of columns. The sources need pyarrow, which the server does not
need. In every message, row 1 is the first row below the header.
"""

from foldserve.service.sources.arrays import from_arrays
from foldserve.service.sources.arrow import from_table
from foldserve.service.sources.read import STANDARD_INPUT, header, list_files, read, spool_standard_input, stream
from foldserve.service.sources.source import Batch, OnRead, ReadOptions, Source, Stream

__all__ = [
    "STANDARD_INPUT",
    "Batch",
    "OnRead",
    "ReadOptions",
    "Source",
    "Stream",
    "from_arrays",
    "from_table",
    "header",
    "list_files",
    "read",
    "spool_standard_input",
    "stream",
]
