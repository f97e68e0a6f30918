"""Observes requests: the access log, the format of the log, and OpenTelemetry.

This package does not depend on sockets or models.
"""
