"""The service: converts request bytes to rows, runs the model, and returns response bytes.

This package never imports torch.
"""

import sys

# In the repository, this folder can also be imported as `service`, but then every module would exist twice. The
# exception is `python -m service`, which runs `foldserve`: Python sets sys.argv[0] to "-m" while it looks for that
# module.
if __name__ != "foldserve.service" and sys.argv[:1] != ["-m"]:
    raise ImportError("service/ is the folder of foldserve.service: import that instead")
