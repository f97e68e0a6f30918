"""Offline: data -> network -> fit -> fold -> export -> bundle. The package needs the extra `train`."""

import sys

# In the repository this folder is importable as `training` too. Every module would then exist twice. Python sets
# sys.argv[0] to "-m" while it looks for the module of `python -m training`, which is `foldserve-train`.
if __name__ != "foldserve.training" and sys.argv[:1] != ["-m"]:
    raise ImportError("training/ is the folder of foldserve.training: import that instead")
