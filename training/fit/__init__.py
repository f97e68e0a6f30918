"""Training: the loop, its optimiser, checkpoints, processes and calibration. The package does not depend on tables."""
