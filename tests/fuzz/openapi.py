"""Make requests from the OpenAPI document, send them to a real server, and check every response: `make fuzz`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def main() -> int:
    """Run schemathesis for FUZZ_SECONDS against a server of this repository's digits model."""
    serve = [os.environ["SERVER_PYTHON"], "-m", "foldserve.service", "serve", "--models", str(ROOT / "models")]
    with subprocess.Popen([*serve, "--port", "0"], stdout=subprocess.PIPE, text=True) as server:
        try:
            found = re.search(r"http://[\d.:]+", server.stdout.readline() if server.stdout else "")
            if found is None:
                return 1
            command = [
                str(Path(sys.executable).parent / "schemathesis"),
                "--config-file",
                str(HERE / "schemathesis.toml"),
            ]
            command += ["run", f"{found[0]}/openapi.json", "--max-time", os.environ.get("FUZZ_SECONDS", "60")]
            variables = os.environ | {"SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(HERE)}
            return subprocess.run([*command, "--continue-on-failure"], env=variables, check=False).returncode
        finally:
            server.terminate()


if __name__ == "__main__":
    sys.exit(main())
