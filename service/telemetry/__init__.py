"""Observes requests, with the access log and OpenTelemetry. This package also defines the format of all logs.

This package does not depend on sockets or models.
"""
