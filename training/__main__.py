"""`python -m training` is `foldserve-train`."""

import sys

from training.cli import main

sys.exit(main())
