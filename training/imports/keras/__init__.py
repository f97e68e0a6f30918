"""The front end for files of Keras 3 (`.keras`) and Keras 2 (`.keras`, `.h5`).

`reader` calls the other modules: `archive` opens the file, `weights` reads arrays from HDF5, `graph` connects the
layers, and `layers` and `activations` map each layer to the intermediate form. `original` runs a copy of the file in
Keras, if Keras is installed. No code of a file runs.
"""
