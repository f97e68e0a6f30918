"""Handles a request from its bytes to the bytes of its response, with endpoints, batchers and models.

This package does not depend on HTTP.
"""
