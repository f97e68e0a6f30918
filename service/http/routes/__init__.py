"""FastAPI's routes, one module for each protocol. A route translates a request and delegates to the engine.

The name of a route's function is part of its operation id in OpenAPI, which generated clients use: don't rename it.
"""
