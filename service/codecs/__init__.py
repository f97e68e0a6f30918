"""Request bytes -> rows, outputs -> bytes; one file a protocol, and no HTTP in any."""
