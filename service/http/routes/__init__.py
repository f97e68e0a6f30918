"""FastAPI's routes, one module for each protocol. A route translates a request and delegates to the engine.

Don't rename the function of a route. The name of the function is part of the operation id in OpenAPI, which generated
clients use.
"""
