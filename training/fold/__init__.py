"""Folding: turns affine layers into Dense weights, merges ensembles into one graph, and exports the graph to ONNX."""
