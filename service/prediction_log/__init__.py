"""Writes a sample of the predictions to Parquet files.

This package needs pyarrow, which the rest of the server does not need.

log.py      the queue of samples, and the thread that writes them
columns.py  the columns of one model's files
folder.py   the files: their names, and limits of their size and age
"""
