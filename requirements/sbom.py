"""Writes software bills of materials in the format CycloneDX: `make sbom` runs it.

There is one for each list of requirements/, and one for each image that Docker has: its Python and Debian packages.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "dist" / "sbom"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
LISTS = ("cpu", "gpu", "train", "torch", "build")
IMAGES = ("cpu", "gpu", "trainer")

# The Python of an image runs this. It prints [kind, name, version, licence] for each package.
PACKAGES = """
import importlib.metadata, json, subprocess
found = [["pypi", each.metadata["Name"], each.version, each.metadata["License-Expression"] or ""]
         for each in importlib.metadata.distributions()]
shown = subprocess.run(["dpkg-query", "--show", "--showformat", "${Package} ${Version}\\n"],
                       check=True, capture_output=True, text=True).stdout
found += [["deb", *line.split(), ""] for line in shown.splitlines()]
print(json.dumps(found))
"""


def write_list(name: str) -> int:
    """Write the bill of a list of requirements/, and return the number of its packages."""
    source, target = ROOT / "requirements" / f"{name}.txt", FOLDER / f"requirements-{name}.cdx.json"
    flags = ("--pyproject", str(ROOT / "pyproject.toml"), "--output-file", str(target))
    command = [sys.executable, "-W", "ignore", "-m", "cyclonedx_py", "requirements", *flags, str(source)]
    subprocess.run(command, check=True)
    listed = set(re.findall(r"^([\w.-]+)==([^\s;]+)", source.read_text(encoding="utf-8"), re.M))
    written = {(each["name"], each["version"]) for each in json.loads(target.read_bytes())["components"]}
    if listed != written:
        raise SystemExit(f"{target}: it lacks, or has too many: {listed ^ written}")
    return len(written)


def write_image(name: str, digest: str, packages: Iterable[tuple[str, str, str, str]]) -> int:
    """Write the bill of an image, and return the number of its packages."""
    bom = Bom()
    root = Component(
        name="foldserve",
        version=VERSION,
        type=ComponentType.CONTAINER,
        bom_ref=f"image-{name}",
        purl=PackageURL("oci", None, "foldserve", digest, {"tag": name}),
    )
    bom.metadata.component = root
    known = LicenseFactory()
    for kind, package, version, licence in packages:
        purl = PackageURL(kind, "debian" if kind == "deb" else None, package, version)
        bom.components.add(
            Component(
                name=package,
                version=version,
                purl=purl,
                bom_ref=str(purl),
                licenses=[known.make_from_string(licence)] if licence else [],
            )
        )
    bom.register_dependency(root, bom.components)
    text = JsonV1Dot6(bom).output_as_string(indent=2)
    if error := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        raise SystemExit(f"the bill of foldserve:{name} is invalid: {error}")
    (FOLDER / f"image-{name}.cdx.json").write_text(text, encoding="utf-8")
    return len(bom.components)


def docker(*arguments: str) -> str:
    """The output of docker; empty where it fails or is not installed."""
    try:
        done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return "" if done.returncode else done.stdout.strip()


def main() -> None:
    """Write every bill that can be written, and print the names of the images that are missing."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in LISTS:
        print(f"requirements-{name}.cdx.json: {write_list(name)} packages")
    for name in IMAGES:
        tag = f"foldserve:{name}"
        digest = docker("image", "inspect", "--format", "{{.Id}}", tag)
        shown = digest and docker("run", "--rm", "--network", "none", "--entrypoint", "python", tag, "-c", PACKAGES)
        if shown:
            print(f"image-{name}.cdx.json: {write_image(name, digest, map(tuple, json.loads(shown)))} packages")
        else:
            print(f"skipped: Docker has no image {tag}")


if __name__ == "__main__":
    main()
