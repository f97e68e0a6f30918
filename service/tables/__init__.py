"""Converts Arrow columns or JSON objects to float32 [rows, features], and back, by the rules of the friendly protocol.

    encoder.py  whole batches of Arrow columns
    column.py   one Arrow column
    objects.py  a batch of JSON objects
    decoder.py  rows, converted back to Arrow columns
    answers.py  outputs, converted to Arrow columns

This package reads a value in the same way as the server reads a value in a request. The server refuses a request with a
bad value. This package refuses only the row with the bad value, and keeps the reason. The package needs pyarrow, which
the server does not need.
"""

from foldserve.service.tables.answers import AnswerColumns
from foldserve.service.tables.decoder import TableDecoder
from foldserve.service.tables.encoder import Encoded, TableEncoder
from foldserve.service.tables.objects import ObjectEncoder

__all__ = ["AnswerColumns", "Encoded", "ObjectEncoder", "TableDecoder", "TableEncoder"]
