"""The processor's model is read from /proc/cpuinfo.

If /proc/cpuinfo names no model, the architecture is used instead.
"""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from foldserve.service.machine import processor


def machine_with(cpuinfo: str, root: Path) -> Path:
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text(cpuinfo, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    "cpuinfo",
    [
        "processor\t: 0\nmodel\t\t: 17\nmodel name\t: Swift: 2000 @ 2.10GHz\n\nprocessor\t: 1\nmodel name\t: other\n",
        "model name: Swift: 2000 @ 2.10GHz",
        "model name\t: Swift: 2000 @\x1b 2.10GHz\n",
    ],
    ids=["two processors", "no tabs", "a control character"],
)
def test_the_first_model_name_is_taken(cpuinfo: str, tmp_path: Path) -> None:
    assert processor.model_name(machine_with(cpuinfo, tmp_path)) == "Swift: 2000 @ 2.10GHz"


def test_without_a_model_name_the_architecture_is_named(tmp_path: Path) -> None:
    architecture = platform.processor() or platform.machine()
    assert processor.model_name(tmp_path) == architecture != ""
    assert processor.model_name(machine_with("processor\t: 0\nFeatures\t: fp asimd\n", tmp_path)) == architecture
