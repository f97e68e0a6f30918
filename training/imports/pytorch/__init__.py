"""The front end for PyTorch: modules in memory, and `.pt2` files of torch.export."""
