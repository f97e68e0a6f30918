"""Offline: data -> network -> fit -> fold -> export -> bundle. Needs the extra `train`."""
