"""The previous version of a model: reads its manifest, and decides whether the new version has the same test rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from foldserve.service import bundle

# These settings decide the test rows, together with the table, its target and the seed.
_SPLIT_SETTINGS = ("test_share", "validation_share", "group", "time", "rare", "keep_duplicates")


@dataclass(frozen=True)
class Previous:
    """The previous version of the model that is being trained.

    manifest: the manifest of the previous version. If the two versions can't be compared, `manifest` is None and
    `reason` says why.
    """

    version: int
    manifest: bundle.Manifest | None
    reason: str = ""

    def has_rows_of(self, manifest: bundle.Manifest) -> bool:
        """Whether the metrics of this version were measured on the same test rows as those of `manifest`.

        The result is False if it is not certain that the test rows are the same.
        """
        if self.manifest is None or manifest.target is None:
            return False
        theirs, ours = self.manifest.provenance, manifest.provenance
        return (
            self.manifest.target == manifest.target
            and (theirs.data_sha256, theirs.seed, theirs.rows) == (ours.data_sha256, ours.seed, ours.rows)
            and all(theirs.hyperparameters.get(name) == ours.hyperparameters.get(name) for name in _SPLIT_SETTINGS)
            # If the test rows come from a file, the provenance contains only the name of this file, so the test rows of
            # two versions can't be compared.
            and "test" not in {**theirs.hyperparameters, **ours.hyperparameters}
        )


def read_previous(model: Path, version: int) -> Previous | None:
    """Read the highest version below `version` in the folder `model`. Return None if there is no earlier version."""
    before = [found for found in bundle.versions(model) if found < version] if model.is_dir() else []
    if not before:
        return None
    try:
        manifest = bundle.read(model / str(before[-1])).manifest
        if "test" not in manifest.metrics:
            return Previous(before[-1], None, "it was imported without a table, and has no metrics")
        return Previous(before[-1], manifest)
    except bundle.BundleError as error:
        return Previous(before[-1], None, str(error))
