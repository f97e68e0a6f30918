"""The front end for files of Keras 3 (`.keras`) and Keras 2 (`.keras`, `.h5`).

`reader` calls the other modules in order. `archive` opens the file, `weights` reads arrays from HDF5, and `graph`
connects the layers. `layers` and `activations` map each layer to the intermediate form. `original` runs a copy of the
file in Keras, if Keras is installed. Code in a file is never run.
"""
