"""The parts that the benchmark scripts share."""
