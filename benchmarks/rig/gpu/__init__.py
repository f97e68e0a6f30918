"""The parts of benchmarks/gpu.py: networks, contenders, hardware limits, kernels, the service, and tables."""

import sys

from rig.environments import ROOT

# foldserve is imported from this checkout. So the machine with the GPU needs no installed foldserve.
sys.path.insert(0, str(ROOT))
