"""Offline: data -> network -> fit -> fold -> export -> bundle. The package needs the extra `train`."""

import sys

# In the repository, this folder can also be imported as `training`, and then every module would exist twice. Only
# `python -m training` may import the folder under this name, because this command runs `foldserve-train`. Python sets
# sys.argv[0] to "-m" while it looks for this module.
if __name__ != "foldserve.training" and sys.argv[:1] != ["-m"]:
    raise ImportError("training/ is the folder of foldserve.training: import that instead")
