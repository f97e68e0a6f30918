"""Shared by the tests of tables."""

Y = ["p", "q"] * 5
"""A target of ten rows and two classes."""
