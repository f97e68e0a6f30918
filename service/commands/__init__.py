"""The commands that do not serve: health, verify, inspect, doctor, tune. Each command prints its own output. The
commands do not depend on the command line, the HTTP server or the engine.
"""
