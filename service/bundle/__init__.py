"""The contract between training and serving: the contents of a bundle, and the functions that write and read a bundle.

    models/<name>/<version>/manifest.json    the schema in manifest.py, as JSON
                            model.onnx       float32 `input` [batch, features] -> `probabilities` or `value`
                            report.html      for people; no program reads it, and a bundle may lack it

This package needs only the standard library and pydantic, so any tool can read a bundle. This package does not depend
on ONNX or sessions.
"""

from foldserve.service.bundle.atomic import replace_file
from foldserve.service.bundle.decision import Decision
from foldserve.service.bundle.description import DESCRIPTION_KEY, describe, describe_manifest
from foldserve.service.bundle.files import (
    MANIFEST_FILE,
    MAX_MANIFEST,
    MAX_MODEL,
    MODEL_FILE,
    REPORT_FILE,
    Bundle,
    find_bundle,
    read,
    read_report,
    require_folder,
    require_place,
    require_writable,
    reseal,
    versions,
    write,
)
from foldserve.service.bundle.manifest import (
    NAME,
    SCHEMA_VERSION,
    Category,
    Certificate,
    Feature,
    Folding,
    Golden,
    Histogram,
    ImportedModel,
    Label,
    Manifest,
    Measurement,
    ModelFile,
    Provenance,
    Target,
    Task,
    Tensor,
    Threshold,
)
from foldserve.service.bundle.parity import (
    Parity,
    Tolerance,
)
from foldserve.service.bundle.reading import FALSE, MAX_MOMENT, MOMENT_PATTERN, TRUE, Reading
from foldserve.service.bundle.sample import draw_column
from foldserve.service.errors import BundleError

__all__ = [
    "DESCRIPTION_KEY",
    "FALSE",
    "MANIFEST_FILE",
    "MAX_MANIFEST",
    "MAX_MODEL",
    "MAX_MOMENT",
    "MODEL_FILE",
    "MOMENT_PATTERN",
    "NAME",
    "REPORT_FILE",
    "SCHEMA_VERSION",
    "TRUE",
    "Bundle",
    "BundleError",
    "Category",
    "Certificate",
    "Decision",
    "Feature",
    "Folding",
    "Golden",
    "Histogram",
    "ImportedModel",
    "Label",
    "Manifest",
    "Measurement",
    "ModelFile",
    "Parity",
    "Provenance",
    "Reading",
    "Target",
    "Task",
    "Tensor",
    "Threshold",
    "Tolerance",
    "describe",
    "describe_manifest",
    "draw_column",
    "find_bundle",
    "read",
    "read_report",
    "replace_file",
    "require_folder",
    "require_place",
    "require_writable",
    "reseal",
    "versions",
    "write",
]
