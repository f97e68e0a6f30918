"""Train a batch-norm MLP on a table, fold it, certify it, and serve it.

`foldserve.service` and `foldserve.training` are the folders `service/` and `training/` of the repository.
"""
