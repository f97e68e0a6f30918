"""The Ray cluster that the tests of this folder share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """The address of a cluster of two nodes with one processor each."""
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed here: make test-ray")
    # The processes of the cluster inherit the environment variable that is set here. On a busy machine, a proxy of Ray
    # Serve starts slowly.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster.address
    cluster.shutdown()
