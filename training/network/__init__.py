"""Networks: defines the layer types, the preprocessing of raw rows, and the MLP.

The package does not train or fold networks.
"""
