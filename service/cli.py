"""`foldserve`: serve, health, verify, inspect, doctor, tune. Composes; nothing imports it.

Exit status: 0 done, 1 refused with one line on standard error, or the doctor found something wrong, 2 a wrong command
line.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Literal, get_args, get_origin

from foldserve.service import bundle, settings
from foldserve.service.bundle import Bundle
from foldserve.service.errors import DeviceError, FoldserveError
from foldserve.service.settings import Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    parsed = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int | None] = parsed.command
    try:
        return command(parsed) or 0
    except FoldserveError as error:
        print(f"foldserve: error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `foldserve inspect ... | head`: nobody reads on, and the interpreter must not try again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("foldserve", description="Serve folded, certified models over REST.")
    parser.add_argument("--version", action="version", version=f"foldserve {version('foldserve')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="serve every model of a folder", description=_serve.__doc__)
    serve.add_argument("--config", type=Path, metavar="TOML", help="file with the settings below, names with _")
    for name, field in Settings.model_fields.items():
        flag = "--" + name.replace("_", "-")
        default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        text = f"{field.description} (default: {default}; {settings.PREFIX}{name.upper()})"
        if field.annotation is bool:
            serve.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        else:
            # Its value is checked with all the others, whichever source it comes from.
            metavar = "|".join(get_args(field.annotation)) if get_origin(field.annotation) is Literal else name.upper()
            serve.add_argument(flag, default=argparse.SUPPRESS, metavar=metavar, help=text)
    serve.set_defaults(command=_serve)

    health = commands.add_parser("health", help="ask a running service if it is ready", description=_health.__doc__)
    health.set_defaults(command=_health)

    for name, command, text in (
        ("verify", _verify, "prove a bundle again on this machine"),
        ("inspect", _inspect, "show what is in a bundle"),
    ):
        sub = commands.add_parser(name, help=text, description=command.__doc__)
        sub.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder <models>/<name>/<version>")
        sub.set_defaults(command=command)

    doctor = commands.add_parser("doctor", help="say what is wrong with this machine", description=_doctor.__doc__)
    devices = get_args(Settings.model_fields["device"].annotation)
    doctor.add_argument("--device", choices=devices, default="auto", help="what is to serve (default: auto)")
    doctor.add_argument("--json", action="store_true", help='print one object, {"ok": ..., "checks": [...]}')
    doctor.set_defaults(command=_doctor)

    tune = commands.add_parser("tune", help="find the settings that suit this machine", description=_tune.__doc__)
    tune.add_argument("model", type=Path, metavar="MODEL", help="folder <models>/<name>, or of one <version> in it")
    tune.add_argument(
        "-o",
        dest="output",
        type=Path,
        default=Path("foldserve.toml"),
        metavar="TOML",
        help="file for `foldserve serve --config`; the picture goes beside it (default: foldserve.toml)",
    )
    tune.add_argument("--device", choices=devices, default="auto", help="what is to serve (default: auto)")
    tune.add_argument(
        "--seconds", type=_seconds, default=20.0, metavar="S", help="about how long to measure (default: 20)"
    )
    tune.add_argument("--json", action="store_true", help="print one object with all that was measured and chosen")
    tune.set_defaults(command=_tune)
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 86_400:
        raise argparse.ArgumentTypeError("seconds, more than 0 and at most a day")
    return value


def _serve(parsed: argparse.Namespace) -> None:
    """Serve every model of a folder. Each setting is a flag, an environment variable or a line of --config; the
    first that is given, in this order, wins."""
    flags = {name: value for name, value in vars(parsed).items() if name in Settings.model_fields}
    chosen = settings.load(flags, config=parsed.config)
    # Imported late: the other commands need neither FastAPI nor its start-up time.
    from foldserve.service.http.server import run

    run(chosen)


def _health(_: argparse.Namespace) -> None:
    """Ask the service at FOLDSERVE_HOST and FOLDSERVE_PORT (by default 127.0.0.1 and 8000) whether it is ready, every
    model in it: the health check of a container. Exit status 1 when it is not, or nobody answers within 3 seconds."""
    from foldserve.service.commands.health import ask

    chosen = settings.load({})
    print(f"ready: {ask(chosen.host, chosen.port, timeout=3)}")


def _verify(parsed: argparse.Namespace) -> None:
    """Prove a bundle again on this machine: the hash, the graph, its interface, and the golden rows on every
    provider there is."""
    from foldserve.service.runtime.golden import check_graph
    from foldserve.service.runtime.load import load
    from foldserve.service.runtime.session import Options

    whole = bundle.read(parsed.bundle)
    manifest = whole.manifest
    _passed("hash", f"sha256 {manifest.model.sha256}, {manifest.model.size:,} bytes")
    graph = check_graph(whole).graph
    _passed("graph", f"{' '.join(node.op_type for node in graph.node)}, opset {manifest.model.opset}")
    for options in (Options("cpu"), Options("cuda")):
        try:
            _, parity = load(whole, options)
        except DeviceError as error:
            if options.device == "cpu":
                raise
            print(f"none  {options.device:<12} {error}")
            continue
        _passed(
            options.device,
            f"{parity.rows} golden rows, alone, in pairs and together: off by {parity.max_absolute:.2g} at most, "
            f"{parity.worst:.2%} of the tolerance",
        )
    print(f"{manifest.name}/{manifest.version} is the model that its manifest certifies")


def _passed(check: str, what: str) -> None:
    print(f"ok    {check:<12} {what}")


def _inspect(parsed: argparse.Namespace) -> None:
    """Show what is in a bundle: what was folded where, sizes, metrics, certificate, provenance."""
    from foldserve.service.commands.inspect import show

    whole: Bundle = bundle.read(parsed.bundle)
    show(whole)


def _doctor(parsed: argparse.Namespace) -> int:
    """Say what of this machine and environment is wrong, and the remedy: ONNX Runtime, driver, CUDA's libraries, GPUs,
    processors and memory. Nothing about CUDA is wrong where it is not wanted: with --device cpu, and with auto unless
    onnxruntime-gpu is installed. Exit status 1 when something is wrong."""
    from foldserve.service.commands import doctor

    checks = []
    for check in doctor.examine(parsed.device):
        checks.append(check)
        if not parsed.json:
            print(f"{check.status:<5} {check.name:<20} {check.found}", flush=True)
            if check.remedy:
                print(f"{'':<5} {'':<20} remedy: {check.remedy}", flush=True)
    ok = all(check.status != "wrong" for check in checks)
    if parsed.json:
        print(json.dumps({"ok": ok, "checks": [asdict(check) for check in checks]}, indent=2))
    return 0 if ok else 1


def _tune(parsed: argparse.Namespace) -> None:
    """Measure a model on this machine: latency by batch on the CPU, by threads, and on CUDA, with graphs and without;
    rows per second by processes. Every session is proven first. Write the settings that follow as the TOML that
    `foldserve serve --config` reads, and a picture of the curves beside it."""
    from foldserve.service.commands.tune import choose as tune
    from foldserve.service.commands.tune import report as tuned

    tuned.require_place(parsed.output)
    whole = tune.find(parsed.model)
    name = f"{whole.manifest.name}/{whole.manifest.version}"

    def begin() -> None:
        if not parsed.json:
            print(f"measuring {name} for about {parsed.seconds:g} s: latency by batch, median\n", flush=True)

    found = tune.tune(whole, parsed.device, parsed.seconds, begin=begin)
    drawn = tuned.write(found, parsed.output)
    if parsed.json:
        files = {"config": str(parsed.output), "picture": str(drawn)}
        print(json.dumps(tuned.as_json(found) | files, indent=2))
        return
    print(tuned.table(found.latencies), end="\n\n")
    for choice in found.choices:
        print(f"{choice.setting} = {json.dumps(choice.value)}: {choice.why}")
    for note in found.notes:
        print(note)
    print(f"\nwrote {parsed.output} and {drawn}; serve with it: foldserve serve --config {parsed.output}")
