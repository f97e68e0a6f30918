"""Counts the work of the service. `interface.py` has the calls that count, `prometheus.py` every metric."""

from foldserve.service.metrics.interface import BatchObserver, Metrics, RequestMetrics, Totals, ignore_batch

__all__ = ["BatchObserver", "Metrics", "RequestMetrics", "Totals", "ignore_batch"]
