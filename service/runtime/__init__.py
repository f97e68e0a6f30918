"""Models that run: sessions on the CPU or on CUDA, checked against the bundle.

This package does not know requests or queues.
"""
