"""Tests new API keys, and files of key hashes. Invalid entries in a file of key hashes are refused."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest

from foldserve.service.access.keys import Keyring, Scope, create_key
from foldserve.service.errors import SettingsError
from tests.service.support import MARKER, assert_refused_in_one_line, foldserve

HASH = sha256(b"any").hexdigest()


def made(*arguments: object) -> dict[str, str]:
    done = foldserve("key", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return dict(line.split(maxsplit=1) for line in done.stdout.splitlines())


def test_the_command_prints_a_key_and_a_line_with_its_hash() -> None:
    printed = made("alice", "--scope", "predict", "--scope", "metrics", "--rate", "2.5")
    line = json.loads(printed["line"])
    assert line == {
        "name": "alice",
        "sha256": sha256(printed["key"].encode()).hexdigest(),
        "scopes": ["predict", "metrics"],
        "rate": 2.5,
    }
    assert printed["key"].startswith("fs_")
    assert len(printed["key"]) == 3 + 43  # a key has 256 bits in base64
    assert made("alice")["key"] != printed["key"]
    assert json.loads(made("bob")["line"]).keys() == {"name", "sha256", "scopes"}


def test_the_command_appends_a_line_and_prints_the_key_only(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    printed = [foldserve("key", name, "--append", file).stdout.strip() for name in ("alice", "bob")]
    file.write_text(file.read_text().removesuffix("\n"))  # an editor may leave out the last newline
    printed.append(foldserve("key", "carol", "--append", file).stdout.strip())
    ring = Keyring([file], None)
    found = [ring.find(key.encode()) for key in printed]
    assert [caller and caller.name for caller in found] == ["alice", "bob", "carol"]
    assert all(caller is not None and caller.scopes == {Scope.PREDICT} for caller in found)
    before = file.read_text()
    assert_refused_in_one_line(foldserve("key", "bob", "--append", file), "has a key bob already")
    assert file.read_text() == before


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("a b",), "name"),
        (("",), "name"),
        (("x" * 65,), "name"),
        (("alice", "--rate", "0"), "rate"),
        (("alice", "--rate", "nan"), "rate"),
        (("alice", "--append", "/nowhere/keys"), "can't write /nowhere/keys: No such file or directory"),
    ],
)
def test_a_key_with_an_invalid_name_or_rate_is_not_made(arguments: tuple[str, ...], reason: str) -> None:
    assert_refused_in_one_line(foldserve("key", *arguments), reason)


def test_only_the_key_itself_is_found(tmp_path: Path) -> None:
    key, line = create_key("alice", [Scope.PREDICT], None)
    (tmp_path / "keys").write_text(line)
    ring = Keyring([tmp_path / "keys"], None)
    assert ring.find(key.encode())
    wrong = ["", key[:-1], key + "x", key.upper(), sha256(key.encode()).hexdigest(), f" {key}"]
    assert not any(ring.find(other.encode()) for other in wrong)


def test_comments_and_empty_lines_are_skipped_and_files_are_joined(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("# made by hand\n\n" + json.dumps({"name": "a", "sha256": HASH}) + "\n  # end\n")
    (tmp_path / "b").write_text(json.dumps({"name": "b", "sha256": HASH[::-1], "scopes": ["admin"]}))
    assert Keyring([tmp_path / "a", tmp_path / "b"], None).take_counts().keys() == {"a", "b"}


BAD = {
    "no JSON": "alice",
    "no hash": '{"name": "a"}',
    "a key in place of its hash": json.dumps({"name": "a", "sha256": MARKER}),
    "an upper-case hash": json.dumps({"name": "a", "sha256": HASH.upper().replace("0", "A")}),
    "an unknown scope": json.dumps({"name": "a", "sha256": HASH, "scopes": ["predict", MARKER]}),
    "no scope": json.dumps({"name": "a", "sha256": HASH, "scopes": []}),
    "an unknown field": json.dumps({"name": "a", "sha256": HASH, "scope": "predict"}),
    "a rate of 0": json.dumps({"name": "a", "sha256": HASH, "rate": 0}),
    "an array": "[]",
}


@pytest.mark.parametrize("line", BAD.values(), ids=BAD.keys())
def test_a_bad_line_is_named_without_its_content(line: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# first\n" + line + "\n")
    with pytest.raises(SettingsError) as refused:
        Keyring([file], None)
    assert str(refused.value).startswith(f"{file}, line 2, is not an API key: ")
    assert MARKER not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("same", ["name", "sha256"])
def test_two_keys_with_one_name_or_one_hash_are_refused(same: str, tmp_path: Path) -> None:
    first = {"name": "a", "sha256": HASH}
    second = {"name": "b", "sha256": HASH[::-1], same: first[same]}
    (tmp_path / "keys").write_text(f"{json.dumps(first)}\n{json.dumps(second)}\n")
    with pytest.raises(SettingsError, match=f"two API keys have the {same} of a"):
        Keyring([tmp_path / "keys"], None)


def test_a_file_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff")
    for name, reason in (("none", "No such file"), (".", "Is a directory"), ("binary", "are not UTF-8")):
        with pytest.raises(SettingsError, match=reason):
            Keyring([tmp_path / name], None)


def test_a_changed_file_is_read_again_and_keeps_the_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "keys"
    (old, old_line), (new, new_line) = (create_key(name, [Scope.PREDICT], None) for name in ("old", "new"))
    file.write_text(old_line)
    ring = Keyring([file], None)
    found = ring.find(old.encode())
    assert found
    found.counts[0] += 2
    ring.refresh()
    assert ring.find(old.encode()) is found  # an unchanged file is not read again

    replacement = tmp_path / "replacement"
    replacement.write_text(f"{old_line}\n{new_line}\n")
    replacement.replace(file)
    ring.refresh()
    assert ring.find(new.encode())
    assert ring.take_counts() == {"old": (2, 0, 0), "new": (0, 0, 0)}

    file.write_text(new_line + "\nbroken")
    ring.refresh()
    assert ring.find(old.encode())
    assert "the API keys stay as they were" in caplog.text

    file.unlink()
    ring.refresh()
    assert ring.find(old.encode())

    file.write_text("# all are revoked\n")
    ring.refresh()
    assert not ring.find(old.encode())
    assert not ring.find(new.encode())
    assert "only the open routes answer" in caplog.text
