"""Builds the stand-ins for CUDA's libraries, and an environment in which onnxruntime-gpu finds them first.

This module needs only g++, the installed wheels, and the files of this folder. This module does not depend on the
tests.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

SOURCES = Path(__file__).parent
# For each stand-in: the file of the library, the source, a macro, and the code of the error "not supported". The macro
# selects a part of the source.
_LIBRARIES = (
    ("libcudart.so.13", "cudart.cpp", "CUDART", 801),
    ("libcublas.so.13", "cublas.cpp", "CUBLAS", 15),
    ("libcublasLt.so.13", "others.cpp", "CUBLASLT", 15),
    ("libcurand.so.10", "others.cpp", "CURAND", 1),
    ("libcuda.so.1", "others.cpp", "DRIVER", 801),
)


_COMPILER, _SYMBOLS = (shutil.which(tool) or tool for tool in ("g++", "nm"))


def missing_tools() -> list[str]:
    """List the programs that the build needs and that are not installed."""
    return [tool for tool in ("g++", "nm") if shutil.which(tool) is None]


def build(folder: Path, site: Path) -> dict[str, str]:
    """Build the stand-ins and an environment in `folder`. Return the environment variables for a Python that uses the
    built files.

    site: the site-packages that have onnxruntime-gpu and NVIDIA's headers. The new environment has links to all
    packages of `site` except NVIDIA's packages. Raises `CalledProcessError` if a source does not compile.
    """
    overlay = folder / "site"
    libraries = overlay / "nvidia" / "cu13" / "lib"
    libraries.mkdir(parents=True)
    for package in site.iterdir():
        if package.name not in ("nvidia", "__pycache__") and package.suffix != ".pth":
            (overlay / package.name).symlink_to(package)
    needed = _needed(site / "onnxruntime" / "capi" / "libonnxruntime_providers_cuda.so")
    for file, source, macro, code in _LIBRARIES:
        _build_library(libraries / file, SOURCES / source, macro, code, site, needed)
    return {
        "PYTHONPATH": f"{overlay}:{SOURCES.parents[1]}",
        # In this folder, the loader finds the driver's library, and each library that is loaded without a path.
        "LD_LIBRARY_PATH": str(libraries),
    }


def site_packages() -> Path:
    """Return the site-packages of this environment."""
    return Path(sysconfig.get_path("purelib"))


def _needed(provider: Path) -> dict[str, set[str]]:
    """Read the symbols that ONNX Runtime's CUDA provider takes from each library of CUDA."""
    listed = subprocess.run([_SYMBOLS, "-D", "--undefined-only", provider], capture_output=True, text=True, check=True)
    needed: dict[str, set[str]] = {file: set() for file, *_ in _LIBRARIES}
    for symbol in re.findall(r" U (\S+)$", listed.stdout, re.MULTILINE):
        name, _, version = symbol.partition("@")
        if version in needed:
            needed[version].add(name)
        elif re.match(r"cu[A-Z]", name):  # the driver's symbols have no version
            needed["libcuda.so.1"].add(name)
    return needed


def _build_library(target: Path, source: Path, macro: str, code: int, site: Path, needed: dict[str, set[str]]) -> None:
    """Compile a library. If a function is needed but missing in the source, a substitute returns the error `code`."""
    compiled = target.with_suffix(".o")
    include = site / "nvidia" / "cu13" / "include"
    flags = ("-std=c++17", "-O2", "-fPIC", "-w", f"-D{macro}", f"-I{SOURCES}", f"-I{include}")
    subprocess.run([_COMPILER, *flags, "-c", source, "-o", compiled], check=True)
    listed = subprocess.run([_SYMBOLS, "--defined-only", compiled], capture_output=True, text=True, check=True)
    defined = set(re.findall(r" T (\S+)$", listed.stdout, re.MULTILINE))
    absent = sorted(needed[target.name] - defined)
    rest = target.with_suffix(".rest.cpp")
    rest.write_text("".join(f'extern "C" int {name}() {{ return {code}; }}\n' for name in absent), encoding="ascii")
    versions = target.with_suffix(".map")
    versions.write_text(f"{target.name} {{ global: *; }};\n", encoding="ascii")
    runtime = [target.parent / "libcudart.so.13"] if source.name == "cublas.cpp" else []
    # The loader looks for a library by its SONAME. NVIDIA's libraries also use the SONAME as the version of their
    # symbols.
    linker = [f"-Wl,-soname,{target.name}", "-Wl,-rpath,$ORIGIN"]
    if macro != "DRIVER":
        linker.append(f"-Wl,--version-script,{versions}")
    subprocess.run([_COMPILER, "-shared", "-fPIC", "-w", "-o", target, compiled, rest, *runtime, *linker], check=True)
