"""Explains an answer: computes how much each feature of a row contributes to a logit or a value.

`codec` reads the requests and writes the answers, and `runner` runs the rows. All other modules of this package work
with the nodes of a graph, NumPy arrays and a manifest. The other modules do not depend on requests. No module of this
package depends on a device or a framework.
"""
