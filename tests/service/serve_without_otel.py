"""`foldserve` without the extra `otel`: OpenTelemetry's SDK can't be imported."""

import sys

from foldserve.service.cli import main

if __name__ == "__main__":
    sys.modules.update(dict.fromkeys(["opentelemetry.sdk", "opentelemetry.exporter"]))
    sys.exit(main())
