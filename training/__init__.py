"""Trains a model on a table and writes a bundle: data -> network -> fit -> fold -> export -> bundle. The package needs
the extra `train`.
"""

import sys

# Code in the repository must not import this folder under the name `training`, because every module would then be
# imported twice. The command `python -m training`, which runs `foldserve-train`, is allowed. The condition below
# recognises this command, because Python sets sys.argv[0] to "-m" while it looks for the module that `-m` names.
if __name__ != "foldserve.training" and sys.argv[:1] != ["-m"]:
    raise ImportError("training/ is the folder of foldserve.training: import that instead")
