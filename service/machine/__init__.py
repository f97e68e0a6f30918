"""Describes the machine: processors, memory, GPUs, and the installed ONNX Runtime.

This package knows no models or requests.
"""
