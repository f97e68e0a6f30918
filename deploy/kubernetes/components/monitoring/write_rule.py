"""Writes prometheusrule.yaml from the alerts of deploy/prometheus/rules.yml. Run write_rule.py with `make docs`.

The alert FoldserveNotReady loses its last condition, which finds a server that has exited. In Kubernetes the label
`server` is the name of a pod, and each rollout removes pods. Each new pod is a new target.
"""

from __future__ import annotations

from pathlib import Path

import yaml

FOLDER = Path(__file__).parent
RULES = FOLDER.parents[2] / "prometheus/rules.yml"
TARGET = FOLDER / "prometheusrule.yaml"
_EXITED = "  or (group by (server) (max_over_time(up"


class _Dumper(yaml.SafeDumper):
    """A YAML dumper that writes a string of several lines as a literal block, which begins with `|`."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def prometheus_rule() -> str:
    """Return the text of prometheusrule.yaml."""
    rules = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    for rule in (rule for group in rules["groups"] for rule in group["rules"]):
        lines = rule["expr"].splitlines(keepends=True)
        rule["expr"] = "".join(line for line in lines if not line.startswith(_EXITED))
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "foldserve", "namespace": "foldserve"},
        "spec": rules,
    }
    return "# Written by `make docs` from deploy/prometheus/rules.yml.\n" + yaml.dump(
        resource, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True
    )


if __name__ == "__main__":
    TARGET.write_text(prometheus_rule(), encoding="utf-8")
