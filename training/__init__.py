"""Offline: data -> network -> fit -> fold -> export -> bundle. The package needs the extra `train`."""

import sys

# Code in the repository could also import this folder under the name `training`, but every module would then be
# imported twice. So the name `training` is refused, except for the command `python -m training`, which runs
# `foldserve-train`. Python sets sys.argv[0] to "-m" while it looks for the module that `-m` names.
if __name__ != "foldserve.training" and sys.argv[:1] != ["-m"]:
    raise ImportError("training/ is the folder of foldserve.training: import that instead")
