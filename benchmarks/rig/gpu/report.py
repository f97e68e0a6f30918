"""Writes the tables of benchmarks/gpu.py: targets, hardware limits, contenders, savings by folding, and the service."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from rig.gpu.ceilings import Copies, Peak, highest
from rig.gpu.contenders import CONTENDERS, GRAPHED
from rig.gpu.kernels import Profile
from rig.gpu.onnx_contenders import OrtFolded, OrtUnfolded, OursGraphs, OursPlain
from rig.gpu.service import Served
from rig.gpu.timing import BitComparison, Figures
from rig.gpu.torch_contenders import Graphed
from rig.report import NONE, Row, markdown, median_and_range, number, target_row

# Targets.
TORCH_RATIO = 1.2  # target for the ratio: p50 of one row in foldserve ÷ p50 in PyTorch with a CUDA graph
PEAK_SHARE = 0.6
GRAPH_GAIN = 2.0  # target for the ratio: p50 without graphs ÷ p50 with graphs
GRAPH_GAIN_ROWS = 64  # the largest number of rows to which the target GRAPH_GAIN applies

TITLES = {kind.name: kind.title for kind in CONTENDERS}


@dataclass
class Results:
    """All results. `notes` has the reasons for missing figures, as pairs of a contender and a reason.

    wide: the title of the network that is compared with the hardware limits. flops_per_row: the floating-point
    operations of the network for each row. bytes_per_row: the bytes of the network's input for each row. largest: the
    number of rows in the largest batch. dry: whether this is a dry run, which has no verdicts because it measures
    nothing.
    """

    wide: str
    flops_per_row: int
    bytes_per_row: int
    largest: int
    peaks: list[Peak] = field(default_factory=list)
    copies: list[Copies] = field(default_factory=list)
    figures: list[Figures] = field(default_factory=list)
    bit_comparisons: list[BitComparison] = field(default_factory=list)
    profiles: list[Profile] = field(default_factory=list)
    cudnn: list[str] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    dry: bool = False

    def note(self, subject: str, reason: str) -> None:
        """Record the reason why a contender has no figures."""
        self.notes.append((subject, reason))

    def blocks(self) -> list[tuple[str, str]]:
        """List each network and precision that was measured, in order."""
        return list(dict.fromkeys((x.network, x.precision) for x in self.figures))

    def batches(self, block: tuple[str, str]) -> list[int]:
        """List the measured batch sizes of one network in one precision, in ascending order."""
        return sorted({x.batch for x in self.figures if (x.network, x.precision) == block})

    def figure(self, block: tuple[str, str], batch: int, contender: str) -> Figures | None:
        """Find the figures of one contender."""
        return next(
            (
                x
                for x in self.figures
                if (x.network, x.precision) == block and (x.batch, x.contender) == (batch, contender)
            ),
            None,
        )

    def profile(self, block: tuple[str, str], batch: int, contender: str) -> Profile | None:
        """Find the kernels and copies of one contender's run."""
        return next(
            (
                x
                for x in self.profiles
                if (x.network, x.precision) == block and (x.batch, x.contender) == (batch, contender) and x.kernels
            ),
            None,
        )


def as_json(results: Results) -> dict[str, Any]:
    """Return the results in a form that JSON can hold. The times of single runs are left out, because there are
    millions of runs.

    A figure that is missing becomes null in JSON.
    """
    kept = {name: getattr(results, name) for name in ("wide", "flops_per_row", "bytes_per_row", "largest", "dry")}
    kept |= {
        name: list(map(asdict, getattr(results, name))) for name in ("peaks", "copies", "bit_comparisons", "profiles")
    }
    for name, seconds in (("figures", "rounds"), ("served", "latencies")):
        kept[name] = [
            {key: value for key, value in vars(x).items() if key not in (seconds, "rates")}
            | {
                "runs": [len(one) for one in getattr(x, seconds)],
                "medians_s": x.medians,
                "rows_per_s": x.rates,
                "percentiles_s": {
                    str(p): value if math.isfinite(value := x.percentile(p)) else None for p in (50, 95, 99)
                },
            }
            for x in getattr(results, name)
        ]
    return kept | {"cudnn": results.cudnn, "notes": results.notes}


def summary(results: Results) -> str:
    """Write the tables for the README."""
    parts = [targets(results), ceilings(results), _peak_shares(results)]
    for block in results.blocks():
        batches = results.batches(block)
        parts += [_grid(results, block), _details(results, block, _selection(batches))]
    parts += [
        _folding(results),
        _on_the_gpu(results),
        "\n".join(f"- {line}" for line in results.cudnn),
        _served(results),
        _notes(results),
    ]
    return "\n\n".join(part for part in parts if part)


def details(results: Results) -> str:
    """Write the figures of every batch size."""
    return "\n\n".join(_details(results, block, results.batches(block)) for block in results.blocks())


def targets(results: Results) -> str:
    """Write the table of targets."""
    rows: list[Row] = [("foldserve", "median (lowest to highest)", "target", "")]
    for block in results.blocks():
        text = f"{_name(block)}, 1 row: p50 ÷ PyTorch in a CUDA graph"
        rows.append(target_row(text, _torch_ratios(results, block), TORCH_RATIO, at_least=False))
    for block in results.blocks():
        if block[0] == results.wide:
            rows += _peak_rows(results, block)
    rows += [_graphs_row(results, block) for block in results.blocks()]
    rows += [_bits_row(one) for one in results.bit_comparisons]
    return markdown([rows[0], *((*row[:3], NONE) for row in rows[1:])] if results.dry else rows)


def _torch_ratios(results: Results, block: tuple[str, str]) -> list[float]:
    """Return, for each round, the ratio of foldserve's time to the time of PyTorch's faster graph."""
    ours = results.figure(block, 1, OursGraphs.name)
    theirs = [x for name in GRAPHED if (x := results.figure(block, 1, name))]
    if not ours or not theirs:
        return []
    return [mine / min(others) for mine, *others in zip(ours.medians, *(x.medians for x in theirs), strict=True)]


def _peak_rows(results: Results, block: tuple[str, str]) -> list[Row]:
    """Write two rows that give foldserve's rate as a share of the peak rate of matrix products. The first row counts
    the whole time that a caller sees, including the copies. The second row counts only the time of the kernels.
    """
    peak = highest(results.peaks, block[1])
    text, flops = (
        f"{_name(block)}, {results.largest:,} rows: share of the matrix-product peak",
        results.flops_per_row * results.largest,
    )
    ours = results.figure(block, results.largest, OursGraphs.name)
    profile = results.profile(block, results.largest, OursGraphs.name)
    whole = [flops / seconds / peak for seconds in ours.medians] if ours and peak else []
    kernels = [flops / (profile.kernel_us * 1e-6) / peak] if profile and peak else []
    return [
        target_row(f"{text}, host to host", whole, PEAK_SHARE, at_least=True),
        target_row(f"{text}, kernels alone", kernels, PEAK_SHARE, at_least=True),
    ]


def _graphs_row(results: Results, block: tuple[str, str]) -> Row:
    """Write a table row for the batch size at which graphs save the least time."""
    gains = {}
    for batch in results.batches(block):
        ours, plain = (results.figure(block, batch, kind.name) for kind in (OursGraphs, OursPlain))
        if ours and plain and batch <= GRAPH_GAIN_ROWS:
            gains[batch] = [theirs / mine for mine, theirs in zip(ours.medians, plain.medians, strict=True)]
    least = min(gains, key=lambda batch: median(gains[batch]), default=1)
    rows = f"{least} row{'s' * (least > 1)}, the lowest of 1 to {GRAPH_GAIN_ROWS}"
    text = f"{_name(block)}, {rows}: p50 without graphs ÷ with graphs"
    return target_row(text, gains.get(least, []), GRAPH_GAIN, at_least=True)


def _bits_row(one: BitComparison) -> Row:
    text = f"{one.network} {one.precision}: batch sizes with the same bits with and without graphs"
    if not one.same:
        return (text, "not measured", "all", NONE)
    other = [f"{batch:,}" for batch, same in one.same.items() if not same]
    value = f"{len(one.same) - len(other)} of {len(one.same)}" + (f", not {', '.join(other)}" if other else "")
    return (text, value, "all", "missed" if other else "met")


def ceilings(results: Results) -> str:
    """Write the tables of matrix products and copies."""
    rows: list[Row] = [("matrix product", "precision", "TFLOP/s")]
    rows += [
        (" x ".join(f"{n:,}" for n in x.shape), x.precision, median_and_range([r / 1e12 for r in x.rates]))
        for x in results.peaks
    ]
    copies: list[Row] = [("copy", "MB", "GB/s")]
    copies += [
        (x.what, number(x.size / 1e6), median_and_range([rate / 1e9 for rate in x.rates])) for x in results.copies
    ]
    return f"Limits of the hardware:\n\n{markdown(rows)}\n\n{markdown(copies)}"


def _peak_shares(results: Results) -> str:
    rows: list[Row] = [
        ("", "peak, TFLOP/s", "foldserve, host to host", "foldserve, kernels", "PyTorch, on the device", "copy alone")
    ]
    flops = results.flops_per_row * results.largest
    copy = next((median(x.rates) for x in results.copies), None)
    for block in results.blocks():
        peak = highest(results.peaks, block[1])
        if block[0] != results.wide or not peak:
            continue
        ours = results.figure(block, results.largest, OursGraphs.name)
        profile = results.profile(block, results.largest, OursGraphs.name)
        torch = results.figure(block, results.largest, Graphed.name)
        device = torch.device_s if torch else []
        limit = flops * copy / (results.bytes_per_row * results.largest) / peak if copy else 0.0
        rows.append(
            (
                block[1],
                number(peak / 1e12),
                number(flops / median(ours.medians) / peak) if ours else NONE,
                number(flops / (profile.kernel_us * 1e-6) / peak) if profile else NONE,
                number(flops / median(device) / peak) if device else NONE,
                number(limit),
            )
        )
    if len(rows) == 1:
        return ""
    return (
        f"Shares of the peak, {results.wide} at {results.largest:,} rows. `copy alone` is the share that would be "
        f"reached if only the pinned copy of the input took time:\n\n{markdown(rows)}"
    )


def _grid(results: Results, block: tuple[str, str]) -> str:
    batches = results.batches(block)
    rows: list[Row] = [("p50, µs, by rows", *(f"{batch:,}" for batch in batches))]
    for name, title in TITLES.items():
        cells = [results.figure(block, batch, name) for batch in batches]
        if any(cells):
            rows.append((title, *(number(median(x.medians) * 1e6) if x else NONE for x in cells)))
    return f"{_name(block)}, host to host:\n\n{markdown(rows)}"


def _details(results: Results, block: tuple[str, str], batches: Iterable[int]) -> str:
    rows: list[Row] = [
        (
            _name(block),
            "rows",
            "p50, µs",
            "p95, µs",
            "p99, µs",
            "rows/s",
            "foldserve ÷ this",
            "on the device, µs",
            "error",
        )
    ]
    for batch in batches:
        ours = results.figure(block, batch, OursGraphs.name)
        for name, title in TITLES.items():
            x = results.figure(block, batch, name)
            if not x:
                continue
            ratios = [a / b for a, b in zip(ours.rates, x.rates, strict=True)] if ours and x is not ours else []
            tails = (number(x.percentile(share) * 1e6) for share in (95, 99))
            device = median_and_range([s * 1e6 for s in x.device_s]) if x.device_s else NONE
            p50 = median_and_range([s * 1e6 for s in x.medians])
            ratio = median_and_range(ratios) if ratios else NONE
            rows.append((title, f"{batch:,}", p50, *tails, number(median(x.rates)), ratio, device, f"{x.error:.1e}"))
    return markdown(rows)


def _folding(results: Results) -> str:
    rows: list[Row] = [
        ("", "rows", "kernels, unfolded", "folded", "kernel µs, unfolded", "folded", "p50, µs, unfolded", "folded")
    ]
    for block in results.blocks():
        for batch in results.batches(block):
            profiles = [results.profile(block, batch, kind.name) for kind in (OrtUnfolded, OrtFolded)]
            if any(profiles):
                runs = [results.figure(block, batch, kind.name) for kind in (OrtUnfolded, OrtFolded)]
                counts = (number(x.kernels) if x else NONE for x in profiles)
                times = (number(x.kernel_us) if x else NONE for x in profiles)
                waits = (number(median(x.medians) * 1e6) if x else NONE for x in runs)
                rows.append((_name(block), f"{batch:,}", *counts, *times, *waits))
    table = markdown(rows) if len(rows) > 1 else "not measured"
    return f"Savings by folding in ONNX Runtime, per run:\n\n{table}"


def _on_the_gpu(results: Results) -> str:
    rows: list[Row] = [("", "rows", "", "kernels", "kernel µs", "copies", "copy µs")]
    rows += [
        (
            f"{x.network} {x.precision}",
            f"{x.batch:,}",
            TITLES[x.contender],
            *map(number, (x.kernels, x.kernel_us, x.copies, x.copy_us)),
        )
        for x in results.profiles
        if x.kernels
    ]
    return f"Kernels and copies per run:\n\n{markdown(rows)}" if len(rows) > 1 else ""


def _served(results: Results) -> str:
    if not results.served:
        return "The service over HTTP: not measured."
    rows: list[Row] = [("", "rows", "connections", "rows/s", "p50, ms", "p95, ms", "p99, ms")]
    for x in results.served:
        tails = (number(x.percentile(share) * 1e3) for share in (95, 99))
        p50 = median_and_range([s * 1e3 for s in x.medians])
        rows.append(
            (f"{x.network} {x.precision}", f"{x.rows:,}", str(x.connections), median_and_range(x.rates), p50, *tails)
        )
    return f"The service over HTTP, binary tensors:\n\n{markdown(rows)}"


def _notes(results: Results) -> str:
    lines = dict.fromkeys(f"- {subject}: {reason}" for subject, reason in results.notes)
    return "Not measured:\n\n" + "\n".join(lines) if lines else ""


def _selection(batches: Sequence[int]) -> list[int]:
    """Return the smallest, a middle and the largest batch size."""
    return sorted({batches[0], batches[len(batches) // 2], batches[-1]})


def _name(block: tuple[str, str]) -> str:
    return " ".join(block)
