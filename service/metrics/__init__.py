"""Counts the work of the service. The service calls `interface.py`; `prometheus.py` has every metric."""

from foldserve.service.metrics.interface import BatchObserver, Metrics, RequestMetrics, Totals, ignore_batch

__all__ = ["BatchObserver", "Metrics", "RequestMetrics", "Totals", "ignore_batch"]
