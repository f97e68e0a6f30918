"""Runs `foldserve score`: opens the model and the input, scores every row, writes the output, and prints the counts."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from foldserve.service import sources
from foldserve.service.bundle import Bundle, find_bundle, require_place
from foldserve.service.commands.score import local, output, ray_engine
from foldserve.service.commands.score.inputs import cut, kept_fields
from foldserve.service.commands.score.journal import Journal
from foldserve.service.commands.score.output import Output
from foldserve.service.commands.score.progress import ScoreProgress
from foldserve.service.commands.score.scorer import Scored, Scorer
from foldserve.service.commands.score.summary import Counted, describe_input, print_note, summarise
from foldserve.service.commands.score.work import Work
from foldserve.service.commands.score.writers import Format, open_writer
from foldserve.service.errors import ScoreError, SourceError, TableError
from foldserve.service.machine import cgroup
from foldserve.service.runtime.load import Runtime, load
from foldserve.service.runtime.session import Device, Options
from foldserve.service.sources import STANDARD_INPUT, ReadOptions, Stream
from foldserve.service.tables import TableEncoder

# The exit status if some rows were refused, and all other rows were scored.
SOME_REFUSED = 3


@dataclass(frozen=True)
class ScoreOptions:
    """The arguments of the command.

    output: `-` for the standard output. kind: the format of the output; None for the format that fits the suffix of
    `output`. sep, encoding, sheet: as in `ReadOptions`.
    """

    model: Path
    inputs: tuple[str, ...]
    output: str
    kind: Format | None
    columns: tuple[str, ...]
    probabilities: bool
    refused: Path | None
    resume: bool
    force: bool
    device: Device
    engine: Literal["local", "ray"]
    sep: str | None
    encoding: str | None
    sheet: str | None

    @property
    def read(self) -> ReadOptions:
        """The settings for reading the files."""
        return ReadOptions(sep=self.sep, encoding=self.encoding, sheet=self.sheet)


def run(options: ScoreOptions) -> int:
    """Score all rows, and return the exit status: 0, or `SOME_REFUSED`.

    Raises `BundleError`, `DeviceError`, `SourceError`, `TableError`, `ScoreError` or `RuntimeFailure`. If the run
    fails, the existing output is unchanged. The rows that were scored so far stay in a folder beside the output.
    """
    started = time.perf_counter()
    target = output.choose(options.output, options.kind, options.refused)
    _check_options(options, target)
    output.check(target, options.inputs, force=options.force)
    bundle = find_bundle(options.model)
    require_place(bundle)
    if bundle.warning:
        print_note(bundle.warning)
    with ExitStack() as stack:
        work = _open_input(options, bundle, stack)
        runtime, _ = load(bundle, Options(options.device, threads=cgroup.threads()))
        stack.callback(runtime.close)
        scorer = work.scorer(runtime.run)
        counted = Counted()
        if target.path is None:
            _write_stream(options, work, runtime, scorer, target, counted)
        else:
            _write_files(options, work, runtime, scorer, target, counted)
    summarise(target, counted, bundle.manifest, runtime.provider, time.perf_counter() - started)
    return SOME_REFUSED if counted.refused else 0


def _check_options(options: ScoreOptions, target: Output) -> None:
    if options.resume and (target.path is None or STANDARD_INPUT in options.inputs):
        raise ScoreError("--resume needs files: the standard input and output can't be read or written again")
    if STANDARD_INPUT in options.inputs and (len(options.inputs) > 1 or options.engine == "ray"):
        raise ScoreError("the standard input can't be combined with other inputs, or read by other machines")
    if options.engine == "ray" and options.device == "cuda":
        raise ScoreError("--engine ray runs on the CPUs of the cluster: leave --device out")


def _open_input(options: ScoreOptions, bundle: Bundle, stack: ExitStack) -> Work:
    """Open the files, and check their columns. Raises `SourceError` and `TableError`."""
    if STANDARD_INPUT in options.inputs:
        files = [str(stack.enter_context(sources.spool_standard_input()))]
    else:
        files = [file for source in options.inputs for file in sources.list_files(source)]
    streams = [sources.stream(file, options.read) for file in files]
    typed = _require_one_format(streams)
    first: Sequence[Any] = ()
    if streams[0].schema is None:
        first, _ = next(streams[0].open((), None), ([], 0.0))
        names = dict.fromkeys(name for each in first if type(each) is dict for name in each)
        checked = [(streams[0].name, pa.schema([(name, pa.null()) for name in names]))]
    else:
        checked = [(stream.name, stream.schema) for stream in streams]
    encoder = TableEncoder(bundle.manifest.features, typed=typed)
    for name, schema in checked:
        encoder.check(schema, name)
    for note in describe_input(bundle.manifest, streams, checked[0][1].names, options.columns):
        print_note(note)
    kept = tuple(kept_fields(streams, options.columns, first))
    return Work(bundle, tuple(cut(files, streams)), options.read, kept, typed, options.probabilities)


def _require_one_format(streams: Sequence[Stream]) -> bool:
    first = streams[0]
    for other in streams:
        if (other.typed, other.schema is None) != (first.typed, first.schema is None):
            raise TableError(f"{other.name} and {first.name} have different formats: score files of one format")
    return first.typed


def _engine(options: ScoreOptions, work: Work, runtime: Runtime, piece: int, chunk: int) -> Iterator[Scored]:
    if options.engine == "local":
        return local.score(work, runtime, piece, chunk)
    return ray_engine.score(work, piece, chunk)


def _write_stream(
    options: ScoreOptions, work: Work, runtime: Runtime, scorer: Scorer, target: Output, counted: Counted
) -> None:
    """Write each answer to the standard output as soon as it is ready. Write the refused rows to their own file."""
    with ExitStack() as stack:
        writer = open_writer(target.kind, sys.stdout.buffer, scorer.schema)
        refused = None
        progress = stack.enter_context(ScoreProgress())
        for scored in _engine(options, work, runtime, 0, 0):
            if scored.refused is not None and target.refused is not None:
                with _explaining(target.refused):
                    refused = refused or stack.enter_context(output.new_file(target.refused, scorer.refused_schema))
                    refused.write(scored.refused)
            writer.write(scored.answers)
            counted.add(scored)
            progress.update(scored.share, counted.rows)
        _require_rows(counted, work)
        writer.close()
        sys.stdout.buffer.flush()


def _write_files(
    options: ScoreOptions, work: Work, runtime: Runtime, scorer: Scorer, target: Output, counted: Counted
) -> None:
    """During the run, write the answers into the journal. At the end, copy the answers from the journal into the
    output.
    """
    path = target.path or Path()
    with _explaining(path):
        job = _job(options, work, runtime, target)
        journal = Journal.open(target.folder, job, resume=options.resume, force=options.force)
    try:
        with _explaining(path, journal), ScoreProgress() as progress:
            if journal.saved:
                print_note(f"resuming after {journal.saved:,} rows")
            for scored in _engine(options, work, runtime, journal.piece, journal.chunk):
                journal.add(scored)
                progress.update(scored.share, journal.rows)
            journal.end_part()
            counted.rows, counted.refused, counted.unusual = journal.rows, journal.refused, journal.unusual
            _require_rows(counted, work)
            _publish(journal, scorer, target, counted, progress)
    except BaseException:
        journal.close()
        if not journal.saved:  # no part is saved, so the run can't be resumed
            journal.remove()
        raise
    journal.close()
    journal.remove()


def _publish(journal: Journal, scorer: Scorer, target: Output, counted: Counted, progress: ScoreProgress) -> None:
    """Write the output and the refused rows from the parts of the journal, and rename the files."""
    refused = journal.folder / "refused"
    if counted.refused:
        first = next(journal.refusals())
        counted.note_first(first)
        output.write_file(refused, "csv", journal.refusals(), scorer.refused_schema)

    def answers() -> Iterator[pa.RecordBatch]:
        done = 0
        for batch in journal.answers():
            yield batch
            done += len(batch)
            progress.update(done / journal.rows, journal.rows, "write")

    output.write_file(journal.folder / "output", target.kind, answers(), scorer.schema)
    output.publish(target, journal.folder / "output", refused if counted.refused else None)


def _require_rows(counted: Counted, work: Work) -> None:
    if not counted.rows:
        raise SourceError(f"{work.pieces[0].file} has columns but no rows")


def _job(options: ScoreOptions, work: Work, runtime: Runtime, target: Output) -> dict[str, Any]:
    """Return the inputs and options that decide the bytes of the output."""
    manifest = work.bundle.manifest
    files = {piece.path: Path(piece.path).stat() for piece in work.pieces}
    return {
        "model": f"{manifest.name}/{manifest.version}, {manifest.model.sha256}, {work.bundle.digest}",
        "input files": [[path, status.st_size, status.st_mtime_ns] for path, status in files.items()],
        "columns": options.columns,
        "probabilities": options.probabilities,
        "format": target.kind,
        "reading options": asdict(options.read),
        "device": runtime.provider,
        "version of foldserve": version("foldserve"),
    }


@contextmanager
def _explaining(path: Path, journal: Journal | None = None) -> Iterator[None]:
    """Turn an error of the file system into a message of one line. The message says how the user can resume the run."""
    try:
        yield
    except OSError as error:
        more = f"; {journal.saved:,} rows are saved: use --resume to go on" if journal and journal.saved else ""
        raise ScoreError(f"{path}: can't be written: {error.strerror or error}{more}") from error
    except KeyboardInterrupt:
        if journal is not None and journal.saved:
            print_note(f"interrupted: {journal.saved:,} rows are saved: use --resume to go on")
        raise
