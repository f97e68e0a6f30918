"""Folding: affine layers into Dense weights, ensembles into one graph, and the export to ONNX."""
