"""A target that several tests of tables use."""

Y = ["p", "q"] * 5
"""A target of ten rows and two classes."""
