"""FastAPI's routes, one module for each protocol."""
