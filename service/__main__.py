"""`python -m service` is `foldserve`."""

import sys

from foldserve.service.cli import main

sys.exit(main())
