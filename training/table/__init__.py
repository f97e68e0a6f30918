"""Tables: files to cells, cells to float32 features and a target, rows to a split.

The package does not depend on networks.
"""
