"""`foldserve tune`: measures a model on this machine, and chooses the settings that suit it.

    run          the command: find the bundle, measure, choose, write
    workload     the parts that both measurements share: rows, batch sizes, opening a model
    latency      seconds of one run, by batch size, device and threads
    throughput   rows per second, by number of processes
    choose       measurements -> settings, each with the figures that decided
    report       the result as a table, as TOML and as JSON
    host         the machine: its name, its load, the installed versions

This package does not depend on the HTTP server or the engine. The chosen settings do not change the time that HTTP and
the engine need.
"""
