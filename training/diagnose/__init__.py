"""The diagnosis measures whether the usual claims about batch norm are true for one table.

Each experiment runs with and without batch norm. The result is an HTML report.

    plan.py          the choices of a diagnosis
    sample.py        a table -> standardised rows, a loss, a score; plain SGD
    recipe.py        the user's own recipe with and without batch norm, and its network before and after folding
    convergence.py   three sigmoid layers: the score by steps, and the inputs of the sigmoids
    gradients.py     the gradient norm by layer and depth, before and after training
    modes.py         the gap between training and evaluation mode by batch size
    saving.py        nodes, parameters, latency and memory of the ONNX graph before and after folding
    plots.py         measurements -> SVG
    tables.py        measurements -> tables
    sections.py      measurements -> sentences, plots and tables, as one HTML page
    run.py           all of the above, in this order

Each module with an experiment also writes the sentence that says whether the figures support the claim.
"""
