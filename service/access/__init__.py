"""Decides which requests the service accepts: hosts and origins, keys, scopes and rates. It knows no HTTP framework."""
