"""Importing: turns a model that another framework trained into a folded and certified bundle."""
