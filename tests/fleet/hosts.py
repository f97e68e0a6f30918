"""Simulated hosts on this machine.

Each host is a network namespace with its own address and its own cable to a switch.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

NETWORK = "10.77.0"


@dataclass(frozen=True)
class Host:
    """A network namespace.

    switch: the namespace of the switch, which has the other end of the host's cable.
    """

    namespace: str
    address: str
    switch: str

    def command(self, *words: object) -> list[str]:
        """Return the command line that runs a program on this host. The started process itself becomes the program, so
        its process id does not change.
        """
        return ["nsenter", f"--net=/run/netns/{self.namespace}", *map(str, words)]

    def cut_off(self) -> None:
        """Unplug the host.

        The switch drops each packet to the host and each packet from the host. The senders of the packets get no error.
        """
        ip("-n", self.switch, "link", "set", self.namespace, "down")

    def connect(self) -> None:
        """Connect the host to the switch again."""
        ip("-n", self.switch, "link", "set", self.namespace, "up")


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@contextmanager
def network(size: int) -> Iterator[Sequence[Host]]:
    """Create the hosts of a network.

    The switch is in the namespace of the first host. Skips the test if the machine does not allow namespaces.
    """
    if shutil.which("ip") is None:
        pytest.skip("the program ip is not installed: apt-get install iproute2")
    prefix = f"fs{os.getpid()}"  # the name of a network device has at most 15 characters
    switch, *names = [f"{prefix}-{number}" for number in range(size)]
    with ExitStack() as stack:
        for name in (switch, *names):
            try:
                ip("netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"network namespaces are not allowed here: {error.stderr.strip()}")
            stack.callback(ip, "netns", "del", name)
            ip("-n", name, "link", "set", "lo", "up")
        hosts = [Host(name, f"{NETWORK}.{number + 1}", switch) for number, name in enumerate((switch, *names))]
        ip("-n", switch, "link", "add", "switch", "type", "bridge")
        ip("-n", switch, "addr", "add", f"{hosts[0].address}/24", "dev", "switch")
        ip("-n", switch, "link", "set", "switch", "up")
        for host in hosts[1:]:
            _plug(host, hosts[0])
        yield hosts


def _plug(host: Host, first: Host) -> None:
    """Lay a cable from the host to the switch."""
    name = host.namespace
    ip("-n", host.switch, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
    ip("-n", host.switch, "link", "set", name, "master", "switch", "up")
    ip("-n", name, "addr", "add", f"{host.address}/24", "dev", "eth0")
    ip("-n", name, "link", "set", "eth0", "up")
    # If a router is between the balancer and a host, the balancer gets no answer at all from a host that is cut off. On
    # one network, the balancer would get an error immediately, because it can't look up the host's hardware address. A
    # fixed ARP entry for each host's address prevents such errors.
    (device,) = json.loads(ip("-n", name, "-json", "link", "show", "eth0"))
    ip("-n", first.namespace, "neigh", "replace", host.address, "lladdr", device["address"], "dev", "switch")
