"""Counts what the service does. `interface.py` has the calls that the service makes, `prometheus.py` the metrics."""

from foldserve.service.metrics.interface import BatchObserver, Metrics, RequestMetrics, Totals, ignore_batch

__all__ = ["BatchObserver", "Metrics", "RequestMetrics", "Totals", "ignore_batch"]
