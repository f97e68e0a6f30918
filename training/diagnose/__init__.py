"""What batch norm does on a table at hand: the usual claims, each measured with and without it, as an HTML report.

    plan.py          what decides what is measured
    sample.py        a table -> standardised rows, a loss, a score; plain SGD
    convergence.py   three sigmoid layers: score against steps, what the sigmoids see meanwhile
    gradients.py     gradient norm by layer and depth, before and after training
    modes.py         batch size against the gap between training and evaluation mode
    saving.py        what folding takes off the ONNX graph: nodes, parameters, latency, memory
    plots.py         a measurement -> SVG
    page.py          plots and sentences -> one HTML file
    run.py           all of the above, in this order

A measurement's file also has the sentence that says what the figures show, for the claim or against it.
"""
