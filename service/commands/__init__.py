"""The commands that do not serve: health, verify, inspect, doctor, tune. Each command prints its own output. The
commands know neither the command line, nor HTTP servers, nor the engine.
"""
