"""The routes of FastAPI, with one module for each protocol. A route translates a request, and calls the engine.

Don't rename the function of a route: its name is part of the operation id in OpenAPI, and generated clients use the
operation id.
"""
