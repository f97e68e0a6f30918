"""Describes the machine: processors, memory, GPUs, and the installed ONNX Runtime.

This package does not depend on models or requests.
"""
