"""The parts of benchmarks/gpu.py: networks, contenders, hardware limits, kernels, the service, and tables."""

import sys

from rig.environments import ROOT

# foldserve is imported from this checkout, so it need not be installed on the machine with the GPU.
sys.path.insert(0, str(ROOT))
