"""Models that run: sessions on the CPU or on CUDA, checked against the bundle. It does not know requests or queues."""
