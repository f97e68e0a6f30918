"""Measures a model while it serves: the drift of its inputs, and its quality on labels that become known later."""
