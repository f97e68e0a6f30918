"""Accepts or refuses a request by its host, its origin, its API key, and the scopes and rate limit of the key.

This package does not depend on an HTTP framework.
"""
