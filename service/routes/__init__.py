"""FastAPI's routes, a file a protocol: each translates and delegates. `app.py` puts them together."""
