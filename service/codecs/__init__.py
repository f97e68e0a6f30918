"""Request bytes to rows, outputs to bytes; one file a protocol. `rows.py` has what they share: checked float32 rows."""
