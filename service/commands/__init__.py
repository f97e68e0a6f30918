"""The commands of `foldserve` besides `serve`, with one module or folder for each command.

Each command prints its own output. The commands do not depend on the command line, the HTTP server or the engine.
"""
