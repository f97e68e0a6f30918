"""Tables: columns of Arrow, or JSON objects, to float32 [rows, features], by the rules of the friendly protocol.

    encoder.py  whole batches of Arrow columns
    column.py   one Arrow column
    objects.py  a batch of JSON objects

A value is read as the server reads it in a request. The server refuses a request with a bad value. Here only the row of
the bad value is refused, and its reason is kept. The package needs pyarrow, which the server does not need.
"""

from foldserve.service.tables.encoder import Encoded, TableEncoder
from foldserve.service.tables.objects import ObjectEncoder

__all__ = ["Encoded", "ObjectEncoder", "TableEncoder"]
