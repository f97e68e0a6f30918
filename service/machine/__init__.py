"""Describes the machine: processors, memory, GPUs, and the installed ONNX Runtime. It knows no models or requests."""
