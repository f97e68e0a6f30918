"""A bundle is written completely or not at all.

The reader makes every check, and gives the reason when it refuses a damaged bundle.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldserve.service import bundle
from foldserve.service.bundle import BundleError, Manifest
from tests.service.bundle.test_manifest import BAD_NAMES
from tests.service.support import PATIENCE, flip_byte, manifest


def numbered(whole: bundle.Bundle, name: str | None = None) -> Callable[[int], Manifest]:
    """Return a function that makes the manifest of `whole` for a given version. name: the new name in the manifest."""
    changes = {"name": name} if name else {}
    return lambda version: whole.manifest.model_copy(update={"version": version, **changes})


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_written_bundle_is_read_back(digits: bundle.Bundle, empty: Path) -> None:
    written = bundle.write(empty, "digits", digits.model, numbered(digits))
    assert written == bundle.read(empty / "digits" / "1")
    assert written.manifest == digits.manifest
    assert written.model == digits.model == (empty / "digits" / "1" / "model.onnx").read_bytes()
    assert everything_in(empty) == ["digits", "digits/1", "digits/1/manifest.json", "digits/1/model.onnx"]


def test_the_manifest_on_disk_is_json_with_the_hash_and_size_of_the_model(digits: bundle.Bundle) -> None:
    content = json.loads((digits.path / "manifest.json").read_bytes(), parse_constant=pytest.fail)
    assert content["schema_version"] == 2
    assert content["model"]["size"] == len(digits.model)
    assert content["model"]["sha256"] == sha256(digits.model).hexdigest()


@pytest.mark.parametrize(
    "labels", [(False, True), (0, 1, 2), (0.5, 1.0), ("0", "one"), (True, 2, 3.5, "4")], ids=lambda found: repr(found)
)
def test_labels_keep_their_json_type(labels: tuple[bundle.Label, ...], empty: Path) -> None:
    written = bundle.write(empty, "made", b"model", lambda n: manifest(b"model", version=n, labels=labels))
    assert [(type(label), label) for label in written.manifest.labels] == [(type(label), label) for label in labels]


def test_a_bundle_can_be_read_by_another_user(digits: bundle.Bundle, empty: Path) -> None:
    written = bundle.write(empty, "digits", digits.model, numbered(digits))
    assert written.path.stat().st_mode & 0o777 == 0o755


def test_versions_count_up(diabetes: bundle.Bundle, empty: Path) -> None:
    written = [bundle.write(empty, "diabetes", diabetes.model, numbered(diabetes)) for _ in range(3)]
    assert [whole.manifest.version for whole in written] == [1, 2, 3]
    assert [whole.path.name for whole in written] == ["1", "2", "3"]
    assert bundle.versions(empty / "diabetes") == [1, 2, 3]


def test_versions_are_ordered_as_numbers_and_a_gap_stays(diabetes: bundle.Bundle, empty: Path) -> None:
    for name in ("2", "10", "9"):
        (empty / "diabetes" / name).mkdir(parents=True)
    assert bundle.versions(empty / "diabetes") == [2, 9, 10]
    assert bundle.write(empty, "diabetes", diabetes.model, numbered(diabetes)).path.name == "11"


@pytest.mark.parametrize("name", [".partial-x", "01", "abc", "0", "-2", "2.0", "2 ", "+2", "٢", "²", "2_0", "9" * 19])
def test_only_a_folder_named_by_a_plain_integer_is_a_version(name: str, models: Path, diabetes: bundle.Bundle) -> None:
    (models / "diabetes" / name).mkdir()
    assert bundle.versions(models / "diabetes") == [1]
    assert bundle.write(models, "diabetes", diabetes.model, numbered(diabetes)).path.name == "2"


def test_a_file_with_the_name_of_a_version_does_not_hang_the_writer(models: Path, diabetes: bundle.Bundle) -> None:
    (models / "diabetes" / "2").write_text("no folder")
    asked: list[int] = []

    def once(version: int) -> Manifest:
        # If a version exists already, the writer must ask for another version. If the writer asked for the same version
        # again, its loop would never end.
        assert version not in asked
        asked.append(version)
        return numbered(diabetes)(version)

    try:
        written = bundle.write(models, "diabetes", diabetes.model, once)
    except BundleError:
        assert bundle.versions(models / "diabetes") == [1]
    else:
        assert written.path.name == "3"


def test_concurrent_writers_get_different_versions_and_every_bundle_is_whole(
    digits: bundle.Bundle, diabetes: bundle.Bundle, empty: Path
) -> None:
    writers = 4
    all_want_the_same_version = threading.Barrier(writers, timeout=PATIENCE)

    def write(whole: bundle.Bundle) -> bundle.Bundle:
        asked: list[int] = []

        def manifest_for(version: int) -> Manifest:
            asked.append(version)
            if len(asked) == 1:
                all_want_the_same_version.wait()
            return numbered(whole, "mixed")(version)

        written = bundle.write(empty, "mixed", whole.model, manifest_for)
        assert asked[0] == 1
        return written

    sources = [digits, diabetes] * (writers // 2)
    with ThreadPoolExecutor(writers) as pool:
        written = list(pool.map(write, sources))
    assert sorted(whole.manifest.version for whole in written) == [1, 2, 3, 4]
    for source, whole in zip(sources, written, strict=True):
        assert bundle.read(empty / "mixed" / str(whole.manifest.version)) == whole
        assert whole.model == source.model
    assert sorted(path.name for path in (empty / "mixed").iterdir()) == ["1", "2", "3", "4"]


def test_a_failed_write_leaves_nothing_behind(diabetes: bundle.Bundle, empty: Path) -> None:
    def fails(_: int) -> Manifest:
        raise LookupError

    with pytest.raises(LookupError):
        bundle.write(empty, "diabetes", diabetes.model, fails)
    assert everything_in(empty) == []


def test_a_failed_write_leaves_earlier_versions_alone(diabetes: bundle.Bundle, models: Path) -> None:
    before = everything_in(models)

    def fails(_: int) -> Manifest:
        raise LookupError

    with pytest.raises(LookupError):
        bundle.write(models, "diabetes", diabetes.model, fails)
    assert everything_in(models) == before
    assert bundle.read(models / "diabetes" / "1").manifest == diabetes.manifest


def test_a_report_is_written_beside_the_model_and_readers_ignore_it(diabetes: bundle.Bundle, empty: Path) -> None:
    written = bundle.write(empty, "d", diabetes.model, numbered(diabetes, "d"), lambda found: f"<p>é {found.name}</p>")
    assert everything_in(empty) == ["d", "d/1", "d/1/manifest.json", "d/1/model.onnx", "d/1/report.html"]
    assert (written.path / "report.html").read_bytes() == "<p>é d</p>".encode()
    assert bundle.read(written.path) == written
    assert bundle.versions(empty / "d") == [1]


def test_the_report_describes_the_written_version(diabetes: bundle.Bundle, empty: Path) -> None:
    def takes_the_first(version: int) -> Manifest:
        if version == 1:
            (empty / "diabetes" / "1" / "in the way").mkdir(parents=True)
        return numbered(diabetes)(version)

    written = bundle.write(empty, "diabetes", diabetes.model, takes_the_first, lambda found: str(found.version))
    assert written.path.name == (written.path / "report.html").read_text() == "2"


def test_a_failed_report_leaves_nothing_behind(diabetes: bundle.Bundle, empty: Path) -> None:
    def fails(_: Manifest) -> str:
        raise LookupError

    with pytest.raises(LookupError):
        bundle.write(empty, "diabetes", diabetes.model, numbered(diabetes), fails)
    assert everything_in(empty) == []


def test_a_manifest_of_another_model_is_not_written(diabetes: bundle.Bundle, empty: Path) -> None:
    with pytest.raises(BundleError, match="bytes, the manifest says"):
        bundle.write(empty, "diabetes", diabetes.model + b"x", numbered(diabetes))
    assert everything_in(empty) == []


def test_a_missing_models_folder_is_made(diabetes: bundle.Bundle, tmp_path: Path) -> None:
    written = bundle.write(tmp_path / "new" / "models", "diabetes", diabetes.model, numbered(diabetes))
    assert written.path == tmp_path / "new" / "models" / "diabetes" / "1"


@pytest.mark.parametrize("name", ["models", "models/diabetes"])
def test_a_file_in_place_of_a_folder_is_refused_and_stays(name: str, diabetes: bundle.Bundle, tmp_path: Path) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    with pytest.raises(BundleError):
        bundle.write(tmp_path / "models", "diabetes", diabetes.model, numbered(diabetes))
    assert file.read_text() == "mine"


def test_a_folder_that_vanishes_during_the_write_is_refused(diabetes: bundle.Bundle, empty: Path) -> None:
    def removes_the_folder(version: int) -> Manifest:
        shutil.rmtree(empty / "diabetes")
        return numbered(diabetes)(version)

    with pytest.raises(BundleError, match="can't write there"):
        bundle.write(empty, "diabetes", diabetes.model, removes_the_folder)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_nothing_is_written_under_an_invalid_name(name: str, diabetes: bundle.Bundle, empty: Path) -> None:
    with pytest.raises(BundleError):
        bundle.write(empty, name, diabetes.model, numbered(diabetes))
    assert everything_in(empty.parent) == ["models"]


def test_nothing_is_written_for_a_manifest_of_another_name_or_version(diabetes: bundle.Bundle, empty: Path) -> None:
    with pytest.raises(BundleError):
        bundle.write(empty, "other", diabetes.model, numbered(diabetes))
    with pytest.raises(BundleError):
        bundle.write(empty, "diabetes", diabetes.model, lambda n: numbered(diabetes)(n + 1))
    assert everything_in(empty) == []


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such bundle"):
        bundle.read(tmp_path / "none")


def test_the_error_names_the_folder_and_the_reason_does_not(tmp_path: Path) -> None:
    with pytest.raises(BundleError) as refused:
        bundle.read(tmp_path)
    assert str(refused.value) == f"{tmp_path}: can't read manifest.json: No such file or directory"
    assert refused.value.reason == "can't read manifest.json: No such file or directory"


@pytest.fixture(scope="module")
def copied(diabetes: bundle.Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An intact bundle. Every example of Hypothesis replaces the model of this bundle."""
    return Path(shutil.copytree(diabetes.path, tmp_path_factory.mktemp("copied") / "1"))


@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_flipped_bit_at_any_position_is_refused(
    diabetes: bundle.Bundle, copied: Path, share: float, bit: int
) -> None:
    damaged = bytearray(diabetes.model)
    damaged[int(share * len(damaged))] ^= 1 << bit
    (copied / "model.onnx").write_bytes(damaged)
    with pytest.raises(BundleError, match="its sha256 is not the manifest's"):
        bundle.read(copied)


@pytest.mark.parametrize("position", [0, 1, -1])
def test_a_flipped_byte_at_either_end_is_refused(position: int, folder: Path) -> None:
    flip_byte(folder / "model.onnx", position)
    with pytest.raises(BundleError, match="its sha256 is not the manifest's"):
        bundle.read(folder)


@pytest.mark.parametrize("size", [0, 1, 5000, -1])
def test_a_truncated_model_is_refused(size: int, folder: Path, diabetes: bundle.Bundle) -> None:
    (folder / "model.onnx").write_bytes(diabetes.model[:size])
    with pytest.raises(BundleError, match=rf"bytes, the manifest says {len(diabetes.model)}"):
        bundle.read(folder)


def test_a_model_followed_by_another_byte_is_refused(folder: Path, diabetes: bundle.Bundle) -> None:
    (folder / "model.onnx").write_bytes(diabetes.model + b"\0")
    with pytest.raises(BundleError, match="bytes, the manifest says"):
        bundle.read(folder)


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json"])
def test_a_missing_file_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"can't read {name}: No such file or directory"):
        bundle.read(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"not JSON",
        b"\xff\xfe{}",
        b"{} {}",
        b"\0" * 100,
        b'{"schema_version": ' + b"1" * 5000 + b"}",
        b"[" * 100_000,
    ],
    ids=["empty", "cut", "text", "bytes", "trailing", "zeros", "5000 digits", "nested"],
)
def test_a_manifest_that_is_not_json_is_refused(content: bytes, folder: Path) -> None:
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json is not JSON"):
        bundle.read(folder)


# --- files that are no file ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json"])
def test_a_fifo_is_refused_at_once(name: str, folder: Path) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(BundleError, match=f"{name} is not a regular file"):
        bundle.read(folder)


@pytest.mark.parametrize("target", ["/dev/zero", "."])
@pytest.mark.parametrize("name", ["model.onnx", "manifest.json"])
def test_a_link_to_a_device_or_a_folder_is_refused(name: str, target: str, folder: Path) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to(target)
    with pytest.raises(BundleError, match=f"{name} is not a regular file"):
        bundle.read(folder)


def test_links_to_regular_files_are_read_as_kubernetes_mounts_them(folder: Path, diabetes: bundle.Bundle) -> None:
    data = folder / "..2026_01_01"
    data.mkdir()
    (folder / "..data").symlink_to(data.name)
    for name in ("model.onnx", "manifest.json"):
        (folder / name).rename(data / name)
        (folder / name).symlink_to(f"..data/{name}")
    assert bundle.read(folder).model == diabetes.model


def test_a_link_that_leads_nowhere_is_refused(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").symlink_to("model.onnx")
    with pytest.raises(BundleError, match=r"can't read model\.onnx: Too many levels of symbolic links"):
        bundle.read(folder)


def test_a_manifest_above_the_limit_is_refused_without_a_read(folder: Path) -> None:
    os.truncate(folder / "manifest.json", 300 * 2**20)
    with pytest.raises(BundleError, match=f"manifest.json has {300 * 2**20} bytes; the limit is {64 * 2**20}"):
        bundle.read(folder)


def test_a_model_above_the_limit_is_refused_without_a_read(folder: Path) -> None:
    os.truncate(folder / "model.onnx", 2**40)
    with pytest.raises(BundleError, match=f"model.onnx has {2**40} bytes; the limit is {2**31 - 1}"):
        bundle.read(folder)


# --- writers that were killed ----------------------------------------------------------------------------------------


def test_the_next_write_removes_partial_folders_that_are_older_than_a_day(
    diabetes: bundle.Bundle, empty: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "foldserve")
    now = time.time()
    for name, age in ((".partial-old", 90_000), (".partial-new", 80_000), (".hidden", 90_000)):
        (empty / name).mkdir()
        (empty / name / "model.onnx").write_bytes(b"part")
        os.utime(empty / name, (now - age, now - age))
    (empty / ".partial-file").write_bytes(b"")
    (empty / ".partial-link").symlink_to(".hidden")
    os.utime(empty / ".partial-file", (now - 90_000, now - 90_000))
    bundle.write(empty, "diabetes", diabetes.model, numbered(diabetes))
    assert sorted(file.name for file in empty.iterdir()) == [
        *(".hidden", ".partial-file", ".partial-link", ".partial-new", "diabetes")
    ]
    assert [record.getMessage() for record in caplog.records] == [
        f"removing {empty / '.partial-old'}, which a writer that was killed has left"
    ]


KILLED = textwrap.dedent("""
    import os, signal, sys
    from pathlib import Path
    from foldserve.service import bundle

    source, folder = bundle.read(Path(sys.argv[1])), Path(sys.argv[2])

    def write(models):
        manifest = lambda number: source.manifest.model_copy(update={"version": number})
        return bundle.write(models, source.manifest.name, source.model, manifest)

    def killed_at(models, left):
        def count(event, arguments):
            nonlocal left
            if str(models) in str(arguments[:2]):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(count)

    for step in range(1000):
        models = folder / str(step)
        models.mkdir()
        if not (child := os.fork()):
            killed_at(models, step)
            write(models)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        # The folder holds a whole bundle or nothing, and the next version can be written.
        there = list(models.glob("[!.]*/*"))
        assert [bundle.read(path).model for path in there] == [source.model] * len(there)
        assert len(there) <= 1
        print("killed" if status else "ended", len(there))
        assert write(models).manifest.version == len(there) + 1
        if not status:
            break
""")


def test_a_write_killed_at_any_step_leaves_a_whole_bundle_or_nothing(digits, tmp_path):
    command = [sys.executable, "-c", KILLED, str(digits.path), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *killed, last = done.stdout.splitlines()
    assert last == "ended 1"
    # The bundle appears as a whole in one of the steps: it does not exist before this step, and exists after every
    # later step.
    assert killed == sorted(killed)
    assert {"killed 0", "killed 1"} == set(killed)
