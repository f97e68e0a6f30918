"""The command line of `foldserve`: its commands, their arguments, and the exit status.

This module parses the arguments, and calls the function that does the work. The code of a command is imported when the
command runs. Exit status: 0 done; 1 refused, with one line on standard error, or the doctor found a problem; 2 a wrong
command line; 3 the rows of a table were scored, except for some that were refused. This module has more than 350 lines,
because every argument of every command is defined here.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args, get_origin

from foldserve.service import settings
from foldserve.service.errors import FoldserveError, ScoreError
from foldserve.service.settings import Settings

if TYPE_CHECKING:
    from foldserve.service.commands.models import Server

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

# The flags that KServe gives to every runtime.
_OTHER_FLAGS = {"model_name": ["--model_name"], "model_dir": ["--model_dir"], "port": ["--http_port"]}
_DEVICES = get_args(Settings.model_fields["device"].annotation)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    parsed = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int | None] = parsed.command
    try:
        return command(parsed) or 0
    except FoldserveError as error:
        print(f"foldserve: error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `foldserve inspect ... | head`: the interpreter must not flush to the closed pipe at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130


_BUNDLE = "folder <models>/<name>/<version>, or <models>/<name> for its newest version"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("foldserve", description="Serve folded, certified models over REST.")
    parser.add_argument("--version", action="version", version=f"foldserve {version('foldserve')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands)
    _add(commands, "health", _health, "ask a running service whether it is ready")
    _add_control(commands)
    for name, command, text in (
        ("verify", _verify, "check a bundle again on this machine"),
        ("reseal", _reseal, "seal a bundle of an older schema"),
        ("inspect", _inspect, "show the contents of a bundle"),
    ):
        sub = _add(commands, name, command, text)
        sub.add_argument(
            "bundle",
            type=Path,
            metavar="BUNDLE",
            help=_BUNDLE if name != "reseal" else "folder <models>/<name>/<version>",
        )
        if name == "verify":
            _add_device(sub, "device to check besides the CPU; cuda requires it (default: auto)")
        elif name == "inspect":
            sub.add_argument("--json", action="store_true", help="print everything as one object")
            sub.add_argument("--all", action="store_true", help="print all features, labels and golden rows")
    copy = _add(commands, "copy", _copy, "write a bundle under another name")
    copy.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder of the bundle; it may have any name")
    copy.add_argument("name", metavar="NAME", help="name of the copy; it becomes the next version of this model")
    copy.add_argument("--models", type=Path, metavar="DIR", help="folder of the models (default: two above BUNDLE)")
    key = _add(commands, "key", _key, "make an API key")
    key.add_argument("name", metavar="NAME", help="name of the client, in the metrics and the log")
    key.add_argument(
        "--scope",
        action="append",
        choices=("predict", "metrics", "admin"),
        help="part of the service that the key is for; may be repeated (default: predict)",
    )
    key.add_argument("--rate", type=float, metavar="R", help="requests a second that it may send (default: any number)")
    key.add_argument("--append", type=Path, metavar="FILE", help="append the line to FILE, and print the key only")
    doctor = _add(commands, "doctor", _doctor, "find what is wrong with this machine")
    _add_device(doctor)
    doctor.add_argument("--json", action="store_true", help='print one object, {"ok": ..., "checks": [...]}')
    _add_tune(commands)
    _add_score(commands)
    return parser


def _add(
    commands: Commands, name: str, command: Callable[[argparse.Namespace], int | None], text: str
) -> argparse.ArgumentParser:
    """Add a command. `--help` shows the docstring of `command` as the description."""
    parser = commands.add_parser(name, help=text, description=command.__doc__)
    parser.set_defaults(command=command)
    return parser


def _add_device(parser: argparse.ArgumentParser, text: str = "device that will serve (default: auto)") -> None:
    parser.add_argument("--device", choices=_DEVICES, default="auto", help=text)


def _add_serve(commands: Commands) -> None:
    """Add `serve`, with a flag for each setting. `Settings` validates the values of all sources."""
    serve = _add(commands, "serve", _serve, "serve every model of a folder")
    serve.add_argument("--config", type=Path, metavar="TOML", help="file with the settings below, names with _")
    for name, field in Settings.model_fields.items():
        flags = ["--" + name.replace("_", "-"), *_OTHER_FLAGS.get(name, ())]
        default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        text = f"{field.description} (default: {default}; {settings.PREFIX}{name.upper()})"
        if field.annotation is bool:
            serve.add_argument(*flags, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        else:
            metavar = "|".join(get_args(field.annotation)) if get_origin(field.annotation) is Literal else name.upper()
            serve.add_argument(*flags, default=argparse.SUPPRESS, metavar=metavar, help=text)


def _add_control(commands: Commands) -> None:
    """Add the commands for a running server."""
    listing = _add(commands, "models", _models, "show the models of a running server")
    listing.add_argument("--json", action="store_true", help='print one object, {"models": [...]}')
    parsers = [listing]
    for kind, text in (
        ("load", "load a model of a running server, and try refused versions again"),
        ("unload", "unload a model of a running server, after its last request"),
        ("rollback", "let the version answer that did before"),
        ("promote", "let a version answer, even if its comparison has failed"),
    ):
        parser = _add(commands, kind, _change, text)
        parser.set_defaults(kind=kind)
        parser.add_argument("model", metavar="MODEL", help="name of the model")
        parser.add_argument("version", metavar="VERSION", nargs="?", type=int, help="one version of the model")
        parsers.append(parser)
    for parser in parsers:
        parser.add_argument("--url", help="address of the server (default: FOLDSERVE_HOST, FOLDSERVE_PORT, ...)")
        parser.add_argument(
            "--key-file", type=Path, metavar="FILE", help=f"file with the API key ({settings.KEY_FILE})"
        )


def _add_tune(commands: Commands) -> None:
    tune = _add(commands, "tune", _tune, "find the settings that suit this machine")
    tune.add_argument("model", type=Path, metavar="MODEL", help="folder <models>/<name>, or of one <version> in it")
    tune.add_argument(
        "-o",
        dest="output",
        type=Path,
        default=Path("foldserve.toml"),
        metavar="TOML",
        help="file for `foldserve serve --config` (default: foldserve.toml)",
    )
    _add_device(tune)
    tune.add_argument(
        "--seconds", type=_seconds, default=20.0, metavar="S", help="about how long to measure (default: 20)"
    )
    tune.add_argument("--json", action="store_true", help="print one object with every measurement and choice")


def _add_score(commands: Commands) -> None:
    score = _add(commands, "score", _score, "run a model on every row of a table")
    score.add_argument("model", type=Path, metavar="MODEL", help="folder <models>/<name>, or of one <version> in it")
    score.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="a .csv, .tsv, .txt or .jsonl file (also .gz), a .parquet, .arrow, .feather or .xlsx file, a folder of "
        "such files of one format, or - for the standard input",
    )
    score.add_argument(
        "-o",
        dest="output",
        required=True,
        metavar="OUTPUT",
        help="a .csv, .parquet, .arrow or .jsonl file, or - for the standard output",
    )
    score.add_argument("--columns", type=_names, default=(), metavar="A,B", help="input columns to copy to the output")
    score.add_argument("--probabilities", action="store_true", help="also write the probability of each class")
    score.add_argument(
        "--refused", type=Path, metavar="CSV", help="file of refused rows (default: OUTPUT with .refused.csv)"
    )
    score.add_argument("--format", choices=("csv", "parquet", "arrow", "jsonl"), help="format (default: by the suffix)")
    score.add_argument("--resume", action="store_true", help="go on with an interrupted run of the same command")
    score.add_argument("--force", action="store_true", help="replace OUTPUT, and forget an interrupted run")
    _add_device(score)
    score.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="ray: on the cluster of RAY_ADDRESS (default: local)",
    )
    score.add_argument("--sep", metavar="CHAR", help="separator of a delimited file (default: found)")
    score.add_argument("--encoding", metavar="NAME", help="encoding of a delimited file (default: found)")
    score.add_argument("--sheet", metavar="NAME", help="sheet of a spreadsheet (default: the only one)")


def _names(text: str) -> tuple[str, ...]:
    """Split the text like a row of a CSV, so that a name with a comma can be quoted."""
    return tuple(dict.fromkeys(next(csv.reader([text]), ())))


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 86_400:
        raise argparse.ArgumentTypeError("seconds, more than 0 and at most a day")
    return value


# --- the commands: a docstring is the text of `foldserve COMMAND --help` ---------------------------------------------


def _serve(parsed: argparse.Namespace) -> None:
    """Serve every model of a folder. Each setting is a flag, an environment variable or a line of the --config file. If
    a setting is given more than once, the flag wins over the variable, and the variable over the file."""
    # NumPy computes explanations while other threads compute predictions. If NumPy used several threads, it would delay
    # the predictions, and would itself be slower on a busy machine. NumPy reads this variable when it is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from foldserve.service.http.server import run

    flags = {name: value for name, value in vars(parsed).items() if name in Settings.model_fields}
    run(settings.load(flags, config=parsed.config))


def _health(_: argparse.Namespace) -> None:
    """Ask the service at FOLDSERVE_HOST and FOLDSERVE_PORT (by default 127.0.0.1 and 8000) whether all of its models
    are ready. The request uses TLS if FOLDSERVE_TLS_CERT is set. A container can use this command as its health check.
    The exit status is 1 if a model is not ready, or if the service does not answer within 3 seconds.
    """
    from foldserve.service.commands import health

    health.run(settings.load({}))


def _models(parsed: argparse.Namespace) -> None:
    """Show the models of a running server.

    For each version, the table shows the state, the provider, the rows per second and the p99 of the last second, and
    the share of the tolerance that the golden rows use. The API key needs the scopes admin and predict. To show the
    figures, the key also needs the scope metrics.
    """
    from foldserve.service.commands import models

    models.show(_server(parsed), as_json=parsed.json)


def _change(parsed: argparse.Namespace) -> None:
    """Change the models of a running server. The API key needs the scopes admin and predict. If the server refuses the
    command, its reason is printed, and the exit status is 1."""
    from foldserve.service.commands import models

    models.change(_server(parsed), parsed.kind, parsed.model, parsed.version)


def _server(parsed: argparse.Namespace) -> Server:
    """Find the server of a command: its address and the file of the API key."""
    from foldserve.service.commands import models

    key_file = parsed.key_file or (Path(file) if (file := os.environ.get(settings.KEY_FILE)) else None)
    return models.find_server(settings.load({}), parsed.url, key_file)


def _verify(parsed: argparse.Namespace) -> None:
    """Check a bundle again on this machine: its hash, its seal, its name, its graph, its interface, and its golden rows
    on the CPU and, if CUDA works, on CUDA."""
    from foldserve.service.commands import verify

    verify.run(parsed.bundle, parsed.device)


def _reseal(parsed: argparse.Namespace) -> None:
    """Seal a bundle of an older schema: check it as `verify` does, then write its manifest again with a digest of
    every field. The file is replaced whole or not at all. A manifest that differs from its seal is refused."""
    from foldserve.service.commands import reseal

    reseal.run(parsed.bundle)


def _copy(parsed: argparse.Namespace) -> None:
    """Write a bundle under another name, as the next version of the model with this name.

    A server refuses a folder that was merely renamed, because its manifest has another name. The command checks the
    copy as `verify` does, and gives the copy a new seal.
    """
    from foldserve.service.commands import copy

    copy.run(parsed.bundle, parsed.name, parsed.models)


def _inspect(parsed: argparse.Namespace) -> None:
    """Show the contents of a bundle: the model, its metrics, the folded layers, the certificate, the features, and the
    provenance. The tables have the first features; --all prints every feature, label and golden row. --json prints one
    object: the manifest, the digest of its seal, and the graph."""
    from foldserve.service.commands import inspect

    inspect.run(parsed.bundle, as_json=parsed.json, whole=parsed.all)


def _key(parsed: argparse.Namespace) -> None:
    """Make an API key.

    Print the key, and the line to add to a file for `foldserve serve --keys`. The line has only a hash of the key, so
    the key can't be printed again. A running server reads a changed file within a second or two.
    """
    from foldserve.service.commands import key

    key.run(parsed.name, parsed.scope or ["predict"], parsed.rate, parsed.append)


def _doctor(parsed: argparse.Namespace) -> int:
    """Find what is wrong with this machine and its packages, and print the remedy.

    The command checks ONNX Runtime, the driver, CUDA's libraries, GPUs, processors and memory. A problem with CUDA
    counts only with --device cuda, and with --device auto if onnxruntime-gpu is installed; otherwise it is a note. The
    exit status is 1 if something is wrong.
    """
    from foldserve.service.commands.doctor.run import run

    return run(parsed.device, parsed.json)


def _tune(parsed: argparse.Namespace) -> None:
    """Measure a model on this machine, and write the settings that suit it to a TOML file for `foldserve serve
    --config`. The command measures the latency and the throughput. The latency is the time of one run by batch size: on
    the CPU by number of threads, and on CUDA with and without CUDA graphs. The throughput is the rows per second by
    number of processes. Every session must first reproduce the golden outputs of the bundle.
    """
    from foldserve.service.commands.tune.run import run

    run(parsed.model, parsed.output, parsed.device, parsed.seconds, parsed.json)


def _score(parsed: argparse.Namespace) -> int:
    """Run a model on every row of INPUT, in order and in bounded memory, and write the answers to OUTPUT. The cells are
    read as a server reads them. Rows that a server would refuse go to a file with the reasons, and the exit status is
    then 3. OUTPUT appears when it is complete. An interrupted run can be resumed."""
    if find_spec("pyarrow") is None:
        raise ScoreError("pyarrow is not installed, which reads tables: pip install 'foldserve[score]'")
    from foldserve.service.commands.score.run import ScoreOptions, run

    return run(
        ScoreOptions(
            model=parsed.model,
            inputs=tuple(parsed.inputs),
            output=parsed.output,
            kind=parsed.format,
            columns=parsed.columns,
            probabilities=parsed.probabilities,
            refused=parsed.refused,
            resume=parsed.resume,
            force=parsed.force,
            device=parsed.device,
            engine=parsed.engine,
            sep=parsed.sep,
            encoding=parsed.encoding,
            sheet=parsed.sheet,
        )
    )
