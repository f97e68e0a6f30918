"""Request bytes to rows, outputs to response bytes. One module for each protocol; rows.py holds their shared checks."""
