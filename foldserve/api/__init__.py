"""The Python API: the names of `import foldserve`. Its tables are those of Python: frames, dicts and arrays.

errors.py      the errors and warnings that neither training nor the service has
extras.py      a library that is not installed
frames.py      data frames, Arrow tables, dicts and arrays as Arrow columns, and back
rows.py        the rows of one model from such a table, and its labels and probabilities
model.py       a bundle in this process
client.py      a server
fit.py         a training
estimators.py  scikit-learn
"""
