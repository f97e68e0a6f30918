"""`foldserve score`: runs a model on every row of one or several files.

    run.py         the command: checks, scores, and tells the user
    inputs.py      the files, cut into pieces and chunks of rows
    work.py        the work of a run, which an engine does
    scorer.py      a chunk of rows to a chunk of answers
    local.py       scores the pieces one after the other in this process
    ray_engine.py  scores the pieces on a Ray cluster
    output.py      the paths of the output, and their checks
    journal.py     the folder of an unfinished run, from which it can be resumed
    writers.py     answers to CSV, Parquet, Arrow or JSON lines
    progress.py    the progress bar
    summary.py     the notes and counts that the user sees

The cut into chunks depends only on the files and the model. So a resumed run, and a run on another engine, give the
same bytes as one run.
"""
