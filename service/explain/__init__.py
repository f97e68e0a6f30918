"""Explains an answer: computes how much each feature of a row contributes to a logit or a value.

`codec` reads the requests and writes the answers, and `runner` runs their rows. The other modules know the nodes of a
graph, NumPy arrays and a manifest, but no request. No module knows a device or a framework.
"""
