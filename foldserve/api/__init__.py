"""The Python API: the names of `import foldserve`. The API accepts data frames, dicts and arrays.

errors.py      the errors and warnings that only this API raises
extras.py      checks that an optional library is installed
frames.py      converts data frames, Arrow tables, dicts and arrays to Arrow columns, and results back
rows.py        turns such a table into the rows of a model, and its outputs into labels and probabilities
model.py       loads a bundle and predicts in this process
client.py      asks a server for predictions
fit.py         trains a model
estimators.py  estimators for scikit-learn
"""
