"""The limits of control groups are read from files.

The tests write the files of control groups in the kernel's layout.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from foldserve.service.machine import cgroup
from foldserve.service.machine.cgroup import Memory
from tests.service.support import PATIENCE, environment

GIB = 2**30
V1_UNLIMITED = "9223372036854771712\n"  # the kernel writes this number if there is no limit

Tree = Callable[[str, Mapping[str, str]], Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Return a function that writes /proc/self/cgroup and files of /sys/fs/cgroup under a folder."""

    def lay(own: str, files: Mapping[str, str]) -> Path:
        for name, text in {"proc/self/cgroup": own, **{f"sys/fs/cgroup/{n}": t for n, t in files.items()}}.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return tmp_path

    return lay


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the affinity of this process to 64 processors."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))


# --- processors ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 64),
        ("0::/\n", {"cpu.max": "9900000 100000\n"}, 64),
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "max 100000\n"}, 4),
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "300000 100000\n"}, 3),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "max 100000\n", "cpu.max": "25000 50000\n"}, 0.5),
        ("0::/a\n", {"b/cpu.max": "100000 100000\n"}, 64),
        # The name of a group may contain a colon.
        ("0::/a:b\n", {"a:b/cpu.max": "200000 100000\n"}, 2),
        # In a container, /proc/self/cgroup may name a path of the host. The container sees only the root of the tree of
        # control groups.
        ("0::/system.slice/docker-1.scope\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/../other\n", {"cpu.max": "200000 100000\n", "other/cpu.max": "100000 100000\n"}, 1),
    ],
)
def test_version_2_gives_the_smallest_quota_from_the_own_group_up_to_the_root(
    own: str, files: Mapping[str, str], expected: float, tree: Tree
) -> None:
    assert cgroup.processors(tree(own, files)) == expected


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
@pytest.mark.parametrize(
    ("group", "quota", "expected"), [("/", "250000", 2.5), ("/a", "250000", 2.5), ("/a", "-1", 64), ("/a", "0", 64)]
)
def test_version_1_gives_the_quota_divided_by_its_period(
    mount: str, group: str, quota: str, expected: float, tree: Tree
) -> None:
    folder = f"{mount}{group}".rstrip("/")
    files = {f"{folder}/cpu.cfs_quota_us": quota + "\n", f"{folder}/cpu.cfs_period_us": "100000\n"}
    own = f"4:cpu,cpuacct:{group}\n3:cpuset:/\n2:memory:/\n"
    assert cgroup.processors(tree(own, files)) == expected


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize(("first", "second", "expected"), [("200000", "max", 2), ("-1", "300000", 3)])
def test_with_both_versions_the_smallest_quota_applies(first: str, second: str, expected: int, tree: Tree) -> None:
    root = tree(
        "4:cpu:/a\n0::/b\n",
        {
            "cpu/a/cpu.cfs_quota_us": first,
            "cpu/a/cpu.cfs_period_us": "100000",
            "unified/b/cpu.max": f"{second} 100000",
        },
    )
    assert cgroup.processors(root) == expected


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize(
    "text",
    ["", "\n", "100000", "100000 0\n", "-5 100000\n", "lots 100000\n", "1e5 100000\n", "1 2 3\n", "\u0663 1\n", "\0"],
)
def test_an_invalid_quota_sets_no_limit(text: str, tree: Tree) -> None:
    assert cgroup.processors(tree("0::/\n", {"cpu.max": text})) == 64


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("own", ["", "nonsense\n", "0\n", "::\n", "a:b\n0::/\n"])
def test_invalid_groups_set_no_limit(own: str, tree: Tree) -> None:
    root = tree(own, {})
    assert (cgroup.processors(root), cgroup.memory(root)) == (64, None)


@pytest.mark.usefixtures("many")
def test_files_that_can_not_be_read_set_no_limit(tree: Tree, tmp_path: Path) -> None:
    assert (cgroup.processors(tmp_path), cgroup.memory(tmp_path)) == (64, None)
    root = tree("0::/\n", {})
    (root / "sys/fs/cgroup/cpu.max").mkdir(parents=True)  # a folder can't be opened as a file, even by the user root
    (root / "sys/fs/cgroup/memory.max").mkdir()
    assert (cgroup.processors(root), cgroup.memory(root)) == (64, None)


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize(("quota", "expected"), [(1_000, 1), (100_000, 1), (199_999, 1), (200_000, 2), (250_000, 2)])
def test_threads_are_processors_rounded_down_and_at_least_one(quota: int, expected: int, tree: Tree) -> None:
    assert cgroup.threads(tree("0::/\n", {"cpu.max": f"{quota} 100000"})) == expected


def test_the_scheduler_s_affinity_is_a_limit_too(tree: Tree) -> None:
    """The limit is read by a process that is bound to one processor."""
    root = tree("0::/\n", {"cpu.max": "9900000 100000"})
    bind = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    code = (
        "from pathlib import Path; from foldserve.service.machine import cgroup; "
        f"print(cgroup.processors(Path({str(root)!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", bind + code],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert done.stdout == "1.0\n"


def test_this_machine_has_a_processor_and_a_thread() -> None:
    assert 0 < cgroup.processors() <= len(os.sched_getaffinity(0))
    assert 1 <= cgroup.threads() <= len(os.sched_getaffinity(0))


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {}, None),
        ("0::/\n", {"memory.max": "max\n", "memory.current": "5\n"}, None),
        ("0::/\n", {"memory.max": f"{GIB}\n", "memory.current": "4096\n"}, Memory(GIB, 4096)),
        ("0::/\n", {"memory.max": f"{GIB}\n"}, Memory(GIB, None)),
        ("0::/\n", {"memory.max": f"{GIB}\n", "memory.current": "many\n"}, Memory(GIB, None)),
        ("0::/\n", {"memory.max": "1 GiB\n", "memory.current": "5\n"}, None),
        (
            "0::/a/b\n",
            {
                **{"a/b/memory.max": f"{4 * GIB}", "a/b/memory.current": "1"},
                **{"a/memory.max": f"{2 * GIB}", "a/memory.current": "3"},
            },
            Memory(2 * GIB, 3),
        ),
        ("5:memory:/\n", {"memory/memory.limit_in_bytes": V1_UNLIMITED, "memory/memory.usage_in_bytes": "7\n"}, None),
        (
            "5:memory:/a\n",
            {"memory/a/memory.limit_in_bytes": f"{GIB}\n", "memory/a/memory.usage_in_bytes": "7\n"},
            Memory(GIB, 7),
        ),
        (
            "5:memory:/docker/1\n",
            {"memory/memory.limit_in_bytes": f"{GIB}\n", "memory/memory.usage_in_bytes": "7\n"},
            Memory(GIB, 7),
        ),
    ],
)
def test_the_smallest_memory_limit_comes_with_the_use_of_its_group(
    own: str, files: Mapping[str, str], expected: Memory | None, tree: Tree
) -> None:
    assert cgroup.memory(tree(own, files)) == expected
