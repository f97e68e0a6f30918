"""Decides which requests the service accepts: hosts and origins, keys, scopes and rates.

This package does not depend on an HTTP framework.
"""
