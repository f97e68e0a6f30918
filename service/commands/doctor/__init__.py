"""`foldserve doctor`: finds what is wrong with the machine and its packages before a server starts.

    run            the command: the list of checks in order, their printed form, the exit status
    check          a check and its result
    isolate        runs one check in a child process, which may crash or hang
    onnx_runtime   checks of ONNX Runtime and onnx
    cuda           checks of the driver, CUDA's libraries, the GPUs, and the variables that change them
    resources      checks of processors and memory

The package does not depend on bundles or on the server.
"""
