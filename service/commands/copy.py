"""`foldserve copy`: checks a bundle, then writes the bundle under another name, as the next version of the model with
this name.
"""

from __future__ import annotations

from pathlib import Path

from foldserve.service.bundle import Manifest, find_bundle, read_report, write
from foldserve.service.commands.verify import print_check, prove


def run(path: Path, name: str, models: Path | None) -> None:
    """Copy the bundle in the folder `path` to <models>/<name>/<next version>, with a new seal.

    path: the folder of a bundle, which may have any name, or the folder of a model. If `path` is the folder of a model,
    `run` copies the newest version of the model. models: the folder for the copy. The default is the folder two levels
    above the bundle. The report is copied without a change. Raises `BundleError` if a check fails or the copy can't be
    written. If the copy fails, `run` leaves no file behind.
    """
    bundle = find_bundle(path)
    if bundle.warning:
        print_check("warn", "seal", bundle.warning)
    prove(bundle)

    def renamed(version: int) -> Manifest:
        return bundle.manifest.model_copy(update={"name": name, "version": version})

    report = read_report(bundle.path)
    folder = models or bundle.path.absolute().parent.parent
    copied = write(folder, name, bundle.model, renamed, None if report is None else lambda _: report)
    source = f"{bundle.manifest.name}/{bundle.manifest.version}"
    if report is not None:
        print_check("ok", "report", f"copied as it is: it is the report of {source}")
    print_check("ok", "seal", f"sha256 {copied.digest} of the manifest")
    print(f"wrote {copied.path}, the model of {source}")
