"""The version before a new version: reads its manifest, and says whether the two versions have the same test rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from foldserve.service import bundle

# These settings, the table, its target and the seed decide which rows are test rows.
_SPLIT_SETTINGS = ("test_share", "validation_share", "group", "time", "rare", "keep_duplicates")


@dataclass(frozen=True)
class Previous:
    """The version before this one.

    manifest: its manifest, or None if the two versions can't be compared. Then `reason` says why.
    """

    version: int
    manifest: bundle.Manifest | None
    reason: str = ""

    def has_rows_of(self, manifest: bundle.Manifest) -> bool:
        """Whether this version was measured on the test rows of `manifest`.

        The result is False if this is not certain.
        """
        if self.manifest is None or manifest.target is None:
            return False
        theirs, ours = self.manifest.provenance, manifest.provenance
        return (
            self.manifest.target == manifest.target
            and (theirs.data_sha256, theirs.seed, theirs.rows) == (ours.data_sha256, ours.seed, ours.rows)
            and all(theirs.hyperparameters.get(name) == ours.hyperparameters.get(name) for name in _SPLIT_SETTINGS)
            # The provenance has only the name of a file with test rows, and not its content.
            and "test" not in {**theirs.hyperparameters, **ours.hyperparameters}
        )


def read_previous(model: Path, version: int) -> Previous | None:
    """Read the highest version below `version` in the folder of one model; None if there is none."""
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
