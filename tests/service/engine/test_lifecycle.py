"""A process never returns to an earlier phase. The loss of a device overrides every other phase."""

from __future__ import annotations

import pytest

from foldserve.service.engine.lifecycle import Lifecycle, Phase


class Device:
    lost = False

    def is_lost(self) -> bool:
        return self.lost


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def lifecycle(device: Device) -> Lifecycle:
    return Lifecycle(device_lost=device.is_lost)


def test_a_process_is_ready_only_between_its_start_and_its_drain(lifecycle: Lifecycle) -> None:
    assert (lifecycle.phase, lifecycle.ready) == (Phase.STARTING, False)
    lifecycle.start()
    assert (lifecycle.phase, lifecycle.ready) == (Phase.READY, True)
    lifecycle.drain()
    assert (lifecycle.phase, lifecycle.ready) == (Phase.DRAINING, False)
    assert not lifecycle.lost


def test_a_process_that_drains_does_not_become_ready_again(lifecycle: Lifecycle) -> None:
    lifecycle.drain()
    lifecycle.start()
    assert lifecycle.phase is Phase.DRAINING


@pytest.mark.parametrize("steps", [(), ("start",), ("start", "drain")], ids=["starting", "ready", "draining"])
def test_a_lost_device_ends_every_phase(steps: tuple[str, ...], lifecycle: Lifecycle, device: Device) -> None:
    for step in steps:
        getattr(lifecycle, step)()
    device.lost = True
    assert (lifecycle.phase, lifecycle.ready, lifecycle.lost) == (Phase.LOST, False, True)


def test_a_lost_process_stays_lost(lifecycle: Lifecycle, device: Device) -> None:
    lifecycle.start()
    device.lost = True
    assert lifecycle.lost
    device.lost = False
    lifecycle.start()
    lifecycle.drain()
    assert lifecycle.lost
