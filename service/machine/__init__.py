"""The machine: processors, memory, GPUs and the installed ONNX Runtime. It does not know models or requests."""
