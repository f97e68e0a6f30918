"""A model that runs: sessions on the CPU or CUDA, checked against the bundle. It does not know requests or queues."""
