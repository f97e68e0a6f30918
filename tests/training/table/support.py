"""A target column that several tests of tables share."""

Y = ["p", "q"] * 5
"""A target of ten rows and two classes."""
