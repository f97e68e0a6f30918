"""Observes requests: the access log, the format of the log, and OpenTelemetry. It knows no socket and no model."""
