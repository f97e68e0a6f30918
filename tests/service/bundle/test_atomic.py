"""A file is replaced as a whole. The file has the old or the new content, and no temporary file stays in the folder."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from foldserve.service.bundle.atomic import replace_file


def names(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


def test_a_file_is_written_and_then_replaced(tmp_path: Path) -> None:
    for content in (b"first, which is longer", b"second"):
        replace_file(tmp_path / "a.toml", content)
        assert (tmp_path / "a.toml").read_bytes() == content
        assert names(tmp_path) == ["a.toml"]


def test_the_caller_may_name_the_partial_file(tmp_path: Path) -> None:
    (tmp_path / "a.partial").write_bytes(b"left behind by a killed process")
    replace_file(tmp_path / "a.toml", b"content", tmp_path / "a.partial")
    assert (tmp_path / "a.toml").read_bytes() == b"content"
    assert names(tmp_path) == ["a.toml"]


def test_a_folder_in_the_place_of_the_file_is_refused_and_stays(tmp_path: Path) -> None:
    (tmp_path / "a.toml").mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        replace_file(tmp_path / "a.toml", b"content")
    assert names(tmp_path) == ["a.toml"]


def test_on_a_full_disk_the_old_content_stays(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"old")
    code = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        from foldserve.service.bundle.atomic import replace_file
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            replace_file(Path(sys.argv[1]), bytes(10_000))
        except OSError as error:
            print(error.strerror)
    """)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.toml")], capture_output=True, text=True, check=True
    )
    assert done.stdout == "File too large\n"
    assert (tmp_path / "a.toml").read_bytes() == b"old"
    assert names(tmp_path) == ["a.toml"]


KILLED = textwrap.dedent("""
    import os, signal, sys
    from pathlib import Path
    from foldserve.service.bundle.atomic import replace_file

    def kill_before(event, arguments):
        if event == sys.argv[2] and "a.toml" in str(arguments[:2]):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(kill_before)
    replace_file(Path(sys.argv[1]), b"new")
""")


@pytest.mark.parametrize("event", ["open", "os.rename"])
def test_a_killed_process_leaves_the_old_content(event: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"old")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "a.toml"), event]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -9
    assert (tmp_path / "a.toml").read_bytes() == b"old"
