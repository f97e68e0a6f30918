"""Networks: layers, the encoding of raw rows in front of them, and whole MLPs. It does not know how to train."""
