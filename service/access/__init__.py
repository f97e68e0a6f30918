"""Decides which requests the service accepts: hosts and origins, keys, scopes and rates.

This package knows no HTTP framework.
"""
