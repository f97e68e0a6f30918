"""From the bytes of a request to the bytes of its response: endpoints, batchers, models.

This package does not depend on HTTP.
"""
