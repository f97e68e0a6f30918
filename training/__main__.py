"""`python -m training` runs `foldserve-train`."""

import sys

from foldserve.training.cli import main

sys.exit(main())
