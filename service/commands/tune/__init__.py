"""Measure a model on this machine, and choose settings for it."""
