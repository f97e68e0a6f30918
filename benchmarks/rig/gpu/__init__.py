"""The parts of benchmarks/gpu.py: networks, contenders, hardware limits, kernels, the service, and tables."""

import sys

from rig.environments import ROOT

# foldserve is imported from this checkout, so the machine with the GPU does not need an installed foldserve.
sys.path.insert(0, str(ROOT))
