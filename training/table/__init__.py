"""Tables: reads the cells of files, converts the cells to float32 features and a target, and splits the rows.

The package does not depend on networks.
"""
