"""`foldserve`: serve, verify, inspect. Composes; nothing imports it.

Exit status: 0 done, 1 refused with one line on standard error, 2 a wrong command line.
"""

from __future__ import annotations

import argparse
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from service import bundle, settings
from service.bundle import Bundle
from service.errors import DeviceError, FoldserveError, StartError
from service.settings import Settings

log = logging.getLogger("foldserve")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    parsed = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], None] = parsed.command
    try:
        command(parsed)
    except FoldserveError as error:
        print(f"foldserve: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("foldserve", description="Serve folded, certified models over REST.")
    parser.add_argument("--version", action="version", version=f"foldserve {version('foldserve')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="serve every model of a folder", description=_serve.__doc__)
    serve.add_argument("--config", type=Path, metavar="TOML", help="file with the settings below, names with _")
    for name, field in Settings.model_fields.items():
        flag = "--" + name.replace("_", "-")
        text = f"{field.description} (default: {field.default}; {settings.PREFIX}{name.upper()})"
        if field.annotation is bool:
            serve.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        else:
            serve.add_argument(flag, default=argparse.SUPPRESS, metavar=name.upper(), help=text)
    serve.set_defaults(command=_serve)

    for name, command, text in (
        ("verify", _verify, "prove a bundle again on this machine"),
        ("inspect", _inspect, "show what is in a bundle"),
    ):
        sub = commands.add_parser(name, help=text, description=command.__doc__)
        sub.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder <models>/<name>/<version>")
        sub.set_defaults(command=command)
    return parser


def _serve(parsed: argparse.Namespace) -> None:
    """Serve every model of a folder. Each setting is a flag, an environment variable or a line of --config; the
    first that is given, in this order, wins."""
    flags = {name: value for name, value in vars(parsed).items() if name in Settings.model_fields}
    chosen = settings.load(flags, config=parsed.config)
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        level=chosen.log_level.upper(),
        stream=sys.stderr,
    )
    with _bind(chosen.host, chosen.port) as listener:
        # Imported late: the other commands need neither FastAPI nor its start-up time.
        import uvicorn

        from service.app import create_app

        app = create_app(chosen)
        names = app.state.repository.names()
        golden = app.state.repository.find(names[0]).manifest.golden
        host, port = listener.getsockname()[:2]
        with _closed_on_error(listener, host, port):
            listener.listen(2048)  # another process may have taken the port meanwhile

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                _announce(host, port, names, golden)

        logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, log.getEffectiveLevel()))
        server = Server(
            uvicorn.Config(
                app,
                loop="uvloop",
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=chosen.access_log,
                server_header=False,
                timeout_graceful_shutdown=chosen.drain_timeout,
            )
        )
        # uvicorn drains, and then raises the signal anew for whoever was there before it.
        signal.signal(signal.SIGTERM, _stopped)
        signal.signal(signal.SIGINT, _stopped)
        server.run(sockets=[listener])


def _stopped(_: int, __: object) -> NoReturn:
    log.info("stopped")
    raise SystemExit(0)


def _bind(host: str, port: int) -> socket.socket:
    """Take the port before the models are loaded, but listen only after: what answers is ready."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise StartError(f"can't listen on {host} port {port}: no such host") from error
    listener = socket.socket(family, kind, protocol)
    with _closed_on_error(listener, host, port):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    return listener


@contextmanager
def _closed_on_error(listener: socket.socket, host: str, port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        listener.close()
        raise StartError(f"can't listen on {host} port {port}: {error.strerror}") from error


def _announce(host: str, port: int, names: Sequence[str], golden: bundle.Golden) -> None:
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    print(f"foldserve {version('foldserve')} serves {', '.join(names)} on {url}, documentation on {url}/docs")
    row = ", ".join("null" if value is None else f"{value:.6g}" for value in golden.inputs[0])
    path = "/predict" if len(names) == 1 else f"/v1/models/{names[0]}:predict"
    print("try:")
    print(
        f"""  curl -s {url}{path} -H 'Content-Type: application/json' -d '{{"instances": [[{row}]]}}'""",
        flush=True,
    )


def _verify(parsed: argparse.Namespace) -> None:
    """Prove a bundle again on this machine: the hash, the graph, its interface, and the golden rows on every
    provider there is."""
    from service import runtime

    whole = bundle.read(parsed.bundle)
    manifest = whole.manifest
    _passed("hash", f"sha256 {manifest.model.sha256}, {manifest.model.size:,} bytes")
    graph = runtime.check_graph(whole.model).graph
    _passed("graph", f"{' '.join(node.op_type for node in graph.node)}, opset {manifest.model.opset}")
    devices: tuple[runtime.Device, ...] = ("cpu", "cuda")
    for device in devices:
        try:
            session = runtime.open_session(whole, device, threads=1)
        except DeviceError as error:
            if device == "cpu":
                raise
            print(f"none  {device:<12} {error}")
            continue
        runtime.check_interface(session, manifest)
        parity = runtime.check_golden(session, manifest)
        _passed(
            device,
            f"{parity.rows} golden rows, alone, in pairs and together: off by {parity.max_absolute:.2g} at most, "
            f"{parity.worst:.2%} of the tolerance",
        )
    print(f"{manifest.name}/{manifest.version} is the model that its manifest certifies")


def _passed(check: str, what: str) -> None:
    print(f"ok    {check:<12} {what}")


def _inspect(parsed: argparse.Namespace) -> None:
    """Show what is in a bundle: what was folded where, sizes, metrics, certificate, provenance."""
    from service.inspect import show

    whole: Bundle = bundle.read(parsed.bundle)
    show(whole)


if __name__ == "__main__":
    sys.exit(main())
