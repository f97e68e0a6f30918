"""Who may use the service: hosts and origins, keys, scopes and rates. It knows headers, and no HTTP framework."""
