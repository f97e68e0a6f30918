"""Training: the loop, its optimiser, checkpoints, processes and calibration. It does not know tables."""
