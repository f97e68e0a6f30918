"""The commands that do not serve: health, verify, inspect, doctor, tune. Each prints its own output.

They know neither the command line, nor HTTP servers, nor the engine.
"""
