"""Online: bytes -> rows -> runtime -> bytes. Never imports torch."""

import sys

# In the repository this folder is importable as `service` too, and every module would then exist twice. Python sets
# sys.argv[0] to "-m" while it looks for the module of `python -m service`, which is `foldserve`.
if __name__ != "foldserve.service" and sys.argv[:1] != ["-m"]:
    raise ImportError("service/ is the folder of foldserve.service: import that instead")
