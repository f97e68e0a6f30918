"""FastAPI's routes, one module for each protocol. A route translates a request and delegates to the engine."""
