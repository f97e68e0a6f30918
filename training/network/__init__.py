"""Networks: the layer types, the preprocessing of raw rows, and the MLP. The package neither trains nor folds."""
