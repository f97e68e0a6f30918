"""Writes prometheusrule.yaml from the alerts of deploy/prometheus/rules.yml. Run write_rule.py with `make docs`."""

from __future__ import annotations

from pathlib import Path

import yaml

FOLDER = Path(__file__).parent
RULES = FOLDER.parents[2] / "prometheus/rules.yml"
TARGET = FOLDER / "prometheusrule.yaml"


class _Dumper(yaml.SafeDumper):
    """A YAML dumper that writes a string of several lines as a literal block, which begins with `|`."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def prometheus_rule() -> str:
    """Return the text of prometheusrule.yaml."""
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "foldserve", "namespace": "foldserve"},
        "spec": yaml.safe_load(RULES.read_text(encoding="utf-8")),
    }
    return "# Written by `make docs` from deploy/prometheus/rules.yml.\n" + yaml.dump(
        resource, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True
    )


if __name__ == "__main__":
    TARGET.write_text(prometheus_rule(), encoding="utf-8")
