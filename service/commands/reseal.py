"""`foldserve reseal`: checks a bundle of an older schema, then gives it the seal of the current schema."""

from __future__ import annotations

from pathlib import Path

from foldserve.service.bundle import SCHEMA_VERSION, read, require_place, reseal
from foldserve.service.commands.verify import print_check, prove


def run(path: Path) -> None:
    """Check the bundle in the folder `path` as `verify` does, then replace its manifest in one step.

    A sealed bundle is not changed. Raises `BundleError` if a check fails or the manifest differs from its seal. Also
    raises `BundleError` if the folder is not writable.
    """
    bundle = read(path)
    if bundle.digest is not None:
        print_check("ok", "seal", f"sha256 {bundle.digest} of the manifest: it has a seal already")
        return
    require_place(bundle)
    prove(bundle)
    sealed = reseal(bundle)
    print_check("ok", "seal", f"sha256 {sealed.digest} of the manifest, now of schema {SCHEMA_VERSION}")
    print("the seal covers the labels, features and tolerance as they are now; no check can tell if they are right")
