"""The parts of benchmarks/gpu.py: networks, contenders, hardware limits, kernels, the service, and tables."""

import sys

from rig.environments import ROOT

# On a machine with a GPU, foldserve need not be installed: it is imported from this checkout.
sys.path.insert(0, str(ROOT))
