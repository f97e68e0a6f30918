"""The service: converts request bytes to rows, runs the model, and returns response bytes.

This package never imports torch.
"""

import sys

# In the repository, Python could also import this folder as `service`. This import is refused, because every module
# would then exist twice. `python -m service` is allowed, because it runs `foldserve`. Python sets sys.argv[0] to "-m"
# while Python looks for the module to run.
if __name__ != "foldserve.service" and sys.argv[:1] != ["-m"]:
    raise ImportError("service/ is the folder of foldserve.service: import that instead")
