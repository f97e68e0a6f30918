"""What benchmarks/gpu.py measures with: random networks, contenders, ceilings, kernels, the service, tables."""

import sys

from rig.environments import ROOT

# The script's own folder comes first on the path, and benchmarks/training.py there is not the package `training`.
sys.path.insert(0, str(ROOT))
