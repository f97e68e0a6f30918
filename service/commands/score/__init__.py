"""`foldserve score`: runs a model on every row of one or several files.

    run.py         the command: checks, scores, and prints the results
    inputs.py      the files, cut into pieces and chunks of rows
    work.py        the inputs and settings that an engine needs for a run
    scorer.py      turns a chunk of rows into a chunk of answers
    local.py       scores the pieces one after the other in this process
    ray_engine.py  scores the pieces on a Ray cluster
    output.py      the paths of the output, and their checks
    journal.py     the folder of an unfinished run, from which the run can be resumed
    writers.py     writes answers as CSV, Parquet, Arrow or JSON lines
    progress.py    the progress bar
    summary.py     the notes and counts that the user sees

The division into chunks depends only on the files and the model, so the output has the same bytes even if the run is
resumed or uses another engine.
"""
