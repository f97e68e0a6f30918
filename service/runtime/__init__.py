"""Runs models in sessions on the CPU or on CUDA, and checks these sessions against the bundle.

This package does not depend on requests or queues.
"""
