"""Networks: the layer types, the preprocessing of raw rows, and the MLP. It does not know how to train or fold."""
