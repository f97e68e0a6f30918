"""Decides which versions of each model serve.

This package reads the folder of models and the policies, and plans each change.
"""
