"""The bundles in a folder become models that answer requests. A broken version is refused with a reason."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from foldserve.service import bundle
from foldserve.service.compose import compose
from foldserve.service.engine.repository import Model, Repository, Unavailable
from foldserve.service.errors import ModelNotReady, StartError, UnknownModel
from foldserve.service.settings import Settings
from tests.service.bundle.changes import OLD
from tests.service.support import edit_manifest, flip_byte


def opened(models: Path, **settings: Any) -> Repository:
    return compose(Settings(models=models, device="cpu", **settings)).repository


def add_version(models: Path, name: str) -> Path:
    whole = bundle.read(models / name / "1")
    return bundle.write(models, name, whole.model, lambda n: whole.manifest.model_copy(update={"version": n})).path


def break_(folder: Path) -> None:
    flip_byte(folder / "model.onnx", 0)


def test_every_model_of_the_folder_is_served(models: Path) -> None:
    repository = opened(models)
    assert repository.names() == ("diabetes", "digits")
    for name in repository.names():
        assert repository.find(name).manifest == bundle.read(models / name / "1").manifest
        assert list(repository.versions(name)) == [1]


def test_the_newest_version_serves_by_default_and_an_older_version_by_its_number(models: Path) -> None:
    for _ in range(10):
        add_version(models, "diabetes")
    repository = opened(models)
    assert repository.find("diabetes").manifest.version == 11  # an alphabetical order would make 9 the newest version
    assert repository.find("diabetes", 2).manifest.version == 2
    assert list(repository.versions("diabetes")) == list(range(11, 0, -1))


def test_a_report_in_a_bundle_is_ignored(models: Path) -> None:
    (models / "digits" / "1" / "report.html").write_text("<p>for people</p>")
    assert isinstance(opened(models).versions("digits")[1], Model)


def test_an_older_version_serves_when_the_newer_one_is_broken(models: Path) -> None:
    break_(add_version(models, "digits"))
    repository = opened(models)
    assert repository.find("digits").manifest.version == 1
    refused = repository.versions("digits")[2]
    assert isinstance(refused, Unavailable)
    assert refused.reason == "model.onnx is not the certified one: its sha256 is not the manifest's"
    assert str(models) not in refused.reason
    assert isinstance(repository.versions("digits")[1], Model)


def test_a_refused_version_is_not_ready(models: Path) -> None:
    break_(add_version(models, "digits"))
    with pytest.raises(ModelNotReady):
        opened(models).find("digits", 2)


def test_a_refused_version_is_logged_with_its_folder(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = add_version(models, "digits")
    break_(path)
    opened(models)
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert errors == [f"refused {path}: model.onnx is not the certified one: its sha256 is not the manifest's"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model.onnx").unlink(),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text("{"),
        lambda folder: (folder / "manifest.json").write_text("[" * 100_000),
        lambda folder: edit_manifest(folder, lambda content: content["golden"]["outputs"][0].__setitem__(0, 0.5)),
        lambda folder: edit_manifest(folder, lambda content: content["golden"]["inputs"][0].pop()),
        lambda folder: edit_manifest(folder, lambda content: content.update(schema_version=3)),
        lambda folder: [file.unlink() for file in folder.iterdir()],
    ],
    ids=[
        *("no model", "no manifest", "cut manifest", "nested manifest", "other golden outputs", "ragged golden rows"),
        *("newer schema", "empty folder"),
    ],
)
def test_any_damage_to_the_newest_version_leaves_the_older_one_serving(damage: Any, models: Path) -> None:
    damage(add_version(models, "digits"))
    repository = opened(models)
    assert repository.find("digits").manifest.version == 1
    assert isinstance(repository.versions("digits")[2], Unavailable)


@pytest.mark.parametrize(("field", "value"), [("name", "other"), ("version", 7)])
def test_a_manifest_with_another_name_or_version_is_refused(field: str, value: object, models: Path) -> None:
    edit_manifest(add_version(models, "digits"), lambda content: content.update({field: value}))
    refused = opened(models).versions("digits")[2]
    assert isinstance(refused, Unavailable)
    named = "other/2" if field == "name" else "digits/7"
    assert refused.reason.startswith(f"the manifest is of {named}, the folder is digits/2; ")


def test_a_bundle_that_was_copied_to_another_name_is_refused(models: Path) -> None:
    shutil.copytree(models / "digits", models / "copied")
    (refused,) = opened(models).versions("copied").values()
    assert isinstance(refused, Unavailable)
    assert refused.reason == (
        "the manifest is of digits/1, the folder is copied/1; `foldserve copy` gives a bundle another name"
    )


def test_a_model_with_only_broken_versions_is_not_ready_and_the_others_serve(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    break_(models / "digits" / "1")
    repository = opened(models)
    assert repository.names() == ("diabetes", "digits")
    assert [repository.is_ready(name) for name in repository.names()] == [True, False]
    assert not repository.all_ready
    assert repository.shown.manifest.name == "diabetes"
    with pytest.raises(ModelNotReady):
        repository.find("digits")
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert errors == [
        f"refused {models / 'digits' / '1'}: model.onnx is not the certified one: its sha256 is not the manifest's",
        "digits is not ready: none of its versions may be served",
    ]


def test_a_broken_model_does_not_make_the_other_model_the_default(models: Path) -> None:
    break_(models / "digits" / "1")
    with pytest.raises(UnknownModel, match="there are several models"):
        opened(models).find()
    with pytest.raises(ModelNotReady):
        opened(models, default_model="digits").find()


def test_a_folder_of_only_broken_models_is_a_refusal_to_start(models: Path) -> None:
    break_(models / "digits" / "1")
    (models / "diabetes" / "1" / "manifest.json").unlink()
    with pytest.raises(StartError) as refused:
        opened(models)
    assert str(refused.value) == (
        "no version of diabetes may be served: can't read manifest.json: No such file or directory; "
        "no version of digits may be served: model.onnx is not the certified one: its sha256 is not the manifest's"
    )


def test_the_line_of_a_refusal_to_start_names_three_models(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d", "e"):
        (tmp_path / name / "1").mkdir(parents=True)
    with pytest.raises(StartError, match=r"no version of c may be served: [^;]*; and 2 more models$"):
        opened(tmp_path)


@contextmanager
def without_privileges() -> Iterator[None]:
    """Run as a user who may not read every folder."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_model_folder_without_access_is_not_ready_and_the_others_serve(
    trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with TemporaryDirectory() as folder:  # every user can get access to this folder, but not to pytest's folders
        models = Path(shutil.copytree(trained, Path(folder) / "models"))
        for found in (Path(folder), *Path(folder).rglob("*")):
            found.chmod(0o755)
        (models / "digits").chmod(0)
        with without_privileges():
            repository = opened(models)
        (models / "digits").chmod(0o755)
        assert f"can't read {models / 'digits'}: Permission denied" in caplog.text
    assert repository.is_ready("diabetes")
    assert not repository.is_ready("digits")
    assert repository.versions("digits") == {}


def test_a_bundle_of_schema_1_serves_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(OLD, tmp_path / "models")
    assert opened(tmp_path / "models").is_ready("roots")
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("roots/1: the manifest has no seal (schema 1)")
    assert warning.endswith(f"foldserve reseal {tmp_path / 'models' / 'roots' / '1'}")


def test_a_missing_folder_is_a_refusal_to_start(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="is not a directory"):
        opened(tmp_path / "none")


def test_a_file_in_place_of_the_folder_is_a_refusal_to_start(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("")
    with pytest.raises(StartError, match="is not a directory"):
        opened(tmp_path / "models")


def test_a_folder_without_models_is_a_refusal_to_start(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / ".hidden" / "1").mkdir(parents=True)
    (tmp_path / "no name" / "1").mkdir(parents=True)
    (tmp_path / "being-written" / ".partial-x").mkdir(parents=True)
    with pytest.raises(StartError, match=r"holds no <name>/<version>/$"):
        opened(tmp_path, watch=False)


def test_an_empty_folder_is_a_refusal_to_start_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"it is empty: train into it with .*, or mount .*Docker makes a missing one"):
        opened(tmp_path, watch=False)


def test_other_files_and_folders_beside_the_models_are_ignored(models: Path) -> None:
    (models / "README.md").write_text("")
    (models / "empty").mkdir()
    (models / ".git").mkdir()
    (models / "digits" / ".partial-x").mkdir()
    (models / "digits" / "01").mkdir()
    (models / "digits" / "notes.txt").write_text("")
    repository = opened(models)
    assert repository.names() == ("diabetes", "digits")
    assert list(repository.versions("digits")) == [1]


# --- lookup ----------------------------------------------------------------------------------------------------------


def test_the_only_model_is_the_default(models: Path) -> None:
    shutil.rmtree(models / "digits")
    assert opened(models).find().manifest.name == "diabetes"


def test_the_default_of_several_models_is_the_configured_model(models: Path) -> None:
    assert opened(models, default_model="digits").find().manifest.name == "digits"


def test_several_models_have_no_default_unless_one_is_set(models: Path) -> None:
    with pytest.raises(UnknownModel, match=r"there are several models: name one in the path"):
        opened(models).find()


def test_a_default_that_does_not_exist_is_a_refusal_to_start(models: Path) -> None:
    with pytest.raises(StartError, match="the default model 'nope' is not among diabetes, digits"):
        opened(models, default_model="nope")


@pytest.mark.parametrize("name", ["", ".", "..", "../digits", "digits/1", "digits/", "Digits", "digits\0", "\ud800"])
def test_a_name_is_a_key_and_never_a_path(name: str, models: Path) -> None:
    repository = opened(models)
    for ask in (repository.find, repository.versions):
        with pytest.raises(UnknownModel, match=r"^unknown model$"):
            ask(name)


@pytest.mark.parametrize("version", [0, -1, 2, 10**17])
def test_a_version_that_does_not_exist_is_unknown(version: int, models: Path) -> None:
    with pytest.raises(UnknownModel, match=r"^unknown version of this model$"):
        opened(models).find("digits", version)
