"""Turns request bytes into rows, and outputs into response bytes. Each protocol has a module; `rows` checks values."""
