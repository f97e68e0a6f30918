"""Turns what was found into tables: the targets, the ceilings, everybody's figures, what folding saves, the service."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from rig.gpu.ceilings import Copies, Peak, highest
from rig.gpu.contenders import CONTENDERS, GRAPHED, Graphed, OrtFolded, OrtUnfolded, OursGraphs, OursPlain
from rig.gpu.kernels import Work
from rig.gpu.service import Served
from rig.gpu.timing import Figures, Sameness
from rig.report import NONE, Row, markdown, number, spread, target_row

OF_TORCH = 1.2  # p50 of one row, in that of CUDA-graphed torch
OF_PEAK = 0.6
OF_PLAIN = 2.0  # rate with graphs, in that of plain runs
SMALL = 64  # rows up to which graphs have to gain that

TITLES = {kind.name: kind.title for kind in CONTENDERS}


@dataclass
class Found:
    """All that was measured; what is not there was left out, and `notes` say why."""

    wide: str  # the title of the network that is held against the ceilings
    flops_per_row: int
    bytes_per_row: int  # of input
    largest: int
    peaks: list[Peak] = field(default_factory=list)
    copies: list[Copies] = field(default_factory=list)
    figures: list[Figures] = field(default_factory=list)
    sameness: list[Sameness] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)
    cudnn: list[str] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    dry: bool = False  # nothing here is a measurement, so no target is met or missed

    def note(self, who: str, why: str) -> None:
        """Keep why somebody has no figures."""
        self.notes.append((who, why))

    def blocks(self) -> list[tuple[str, str]]:
        """Give each network and precision that was measured, in order."""
        return list(dict.fromkeys((x.network, x.precision) for x in self.figures))

    def batches(self, block: tuple[str, str]) -> list[int]:
        """Give the batch sizes of a block, ascending."""
        return sorted({x.batch for x in self.figures if (x.network, x.precision) == block})

    def figure(self, block: tuple[str, str], batch: int, contender: str) -> Figures | None:
        """Find one contender's figures."""
        return next(
            (
                x
                for x in self.figures
                if (x.network, x.precision) == block and (x.batch, x.contender) == (batch, contender)
            ),
            None,
        )

    def work_of(self, block: tuple[str, str], batch: int, contender: str) -> Work | None:
        """Find what one run of a contender does on the GPU."""
        return next(
            (
                x
                for x in self.work
                if (x.network, x.precision) == block and (x.batch, x.contender) == (batch, contender) and x.kernels
            ),
            None,
        )


def as_json(found: Found) -> dict[str, Any]:
    """Give everything but the single runs, of which there are millions; what can't be told is null."""
    kept = {name: getattr(found, name) for name in ("wide", "flops_per_row", "bytes_per_row", "largest", "dry")}
    kept |= {name: list(map(asdict, getattr(found, name))) for name in ("peaks", "copies", "sameness", "work")}
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
            for x in getattr(found, name)
        ]
    return kept | {"cudnn": found.cudnn, "notes": found.notes}


def summary(found: Found) -> str:
    """Everything that a reader of the README needs."""
    parts = [targets(found), ceilings(found), _of_the_ceiling(found)]
    for block in found.blocks():
        batches = found.batches(block)
        parts += [_grid(found, block), _details(found, block, _few(batches))]
    parts += [
        _folding(found),
        _on_the_gpu(found),
        "\n".join(f"- {line}" for line in found.cudnn),
        _served(found),
        _notes(found),
    ]
    return "\n\n".join(part for part in parts if part)


def details(found: Found) -> str:
    """Give every batch size's figures."""
    return "\n\n".join(_details(found, block, found.batches(block)) for block in found.blocks())


def targets(found: Found) -> str:
    """Hold what was measured against what the project set itself."""
    rows: list[Row] = [("foldserve", "median (lowest to highest)", "target", "")]
    for block in found.blocks():
        text = f"{_name(block)}, 1 row: p50 of CUDA-graphed PyTorch"
        rows.append(target_row(text, _of_torch(found, block), OF_TORCH, at_least=False))
    for block in found.blocks():
        if block[0] == found.wide:
            rows += _of_peak(found, block)
    rows += [_graphs_row(found, block) for block in found.blocks()]
    rows += [_bits_row(one) for one in found.sameness]
    return markdown([rows[0], *((*row[:3], NONE) for row in rows[1:])] if found.dry else rows)


def _of_torch(found: Found, block: tuple[str, str]) -> list[float]:
    """One ratio a round, to whichever graph of PyTorch was faster in it."""
    ours = found.figure(block, 1, OursGraphs.name)
    theirs = [x for name in GRAPHED if (x := found.figure(block, 1, name))]
    if not ours or not theirs:
        return []
    return [mine / min(others) for mine, *others in zip(ours.medians, *(x.medians for x in theirs), strict=True)]


def _of_peak(found: Found, block: tuple[str, str]) -> list[Row]:
    """Two rows: as a caller sees it, copies included, and the kernels alone."""
    peak = highest(found.peaks, block[1])
    text, flops = f"{_name(block)}, {found.largest:,} rows: matrix-product peak", found.flops_per_row * found.largest
    ours = found.figure(block, found.largest, OursGraphs.name)
    alone = found.work_of(block, found.largest, OursGraphs.name)
    whole = [flops / seconds / peak for seconds in ours.medians] if ours and peak else []
    kernels = [flops / (alone.kernel_us * 1e-6) / peak] if alone and peak else []
    return [
        target_row(f"{text}, host to host", whole, OF_PEAK, at_least=True),
        target_row(f"{text}, kernels alone", kernels, OF_PEAK, at_least=True),
    ]


def _graphs_row(found: Found, block: tuple[str, str]) -> Row:
    """Give the batch size at which graphs gain least."""
    gains = {}
    for batch in found.batches(block):
        ours, plain = (found.figure(block, batch, kind.name) for kind in (OursGraphs, OursPlain))
        if ours and plain and batch <= SMALL:
            gains[batch] = [theirs / mine for mine, theirs in zip(ours.medians, plain.medians, strict=True)]
    least = min(gains, key=lambda batch: median(gains[batch]), default=1)
    text = f"{_name(block)}, {least} row{'s' * (least > 1)}, the least of 1 to {SMALL}: plain p50 of that with graphs"
    return target_row(text, gains.get(least, []), OF_PLAIN, at_least=True)


def _bits_row(one: Sameness) -> Row:
    text = f"{one.network} {one.precision}: batch sizes with the same bits with and without graphs"
    if not one.same:
        return (text, "not measured", "all", NONE)
    other = [f"{batch:,}" for batch, same in one.same.items() if not same]
    value = f"{len(one.same) - len(other)} of {len(one.same)}" + (f", not {', '.join(other)}" if other else "")
    return (text, value, "all", "missed" if other else "met")


def ceilings(found: Found) -> str:
    """Give the bare matrix products and the copies."""
    rows: list[Row] = [("matrix product", "precision", "TFLOP/s")]
    rows += [
        (" x ".join(f"{n:,}" for n in x.shape), x.precision, spread([r / 1e12 for r in x.rates])) for x in found.peaks
    ]
    moved: list[Row] = [("copy", "MB", "GB/s")]
    moved += [(x.what, number(x.size / 1e6), spread([rate / 1e9 for rate in x.rates])) for x in found.copies]
    return f"The two ceilings:\n\n{markdown(rows)}\n\n{markdown(moved)}"


def _of_the_ceiling(found: Found) -> str:
    rows: list[Row] = [
        ("", "peak, TFLOP/s", "foldserve, host to host", "foldserve, kernels", "PyTorch, on the device", "copy alone")
    ]
    flops = found.flops_per_row * found.largest
    copy = next((median(x.rates) for x in found.copies), None)
    for block in found.blocks():
        peak = highest(found.peaks, block[1])
        if block[0] != found.wide or not peak:
            continue
        ours = found.figure(block, found.largest, OursGraphs.name)
        alone = found.work_of(block, found.largest, OursGraphs.name)
        torch = found.figure(block, found.largest, Graphed.name)
        device = torch.device_s if torch else []
        limit = flops * copy / (found.bytes_per_row * found.largest) / peak if copy else 0.0
        rows.append(
            (
                block[1],
                number(peak / 1e12),
                number(flops / median(ours.medians) / peak) if ours else NONE,
                number(flops / (alone.kernel_us * 1e-6) / peak) if alone else NONE,
                number(flops / median(device) / peak) if device else NONE,
                number(limit),
            )
        )
    if len(rows) == 1:
        return ""
    return (
        f"Shares of the peak, {found.wide} at {found.largest:,} rows; `copy alone` is what would be left of the "
        f"peak if the pinned copy of the input were all that took time:\n\n{markdown(rows)}"
    )


def _grid(found: Found, block: tuple[str, str]) -> str:
    batches = found.batches(block)
    rows: list[Row] = [("p50, µs, by rows", *(f"{batch:,}" for batch in batches))]
    for name, title in TITLES.items():
        cells = [found.figure(block, batch, name) for batch in batches]
        if any(cells):
            rows.append((title, *(number(median(x.medians) * 1e6) if x else NONE for x in cells)))
    return f"{_name(block)}, host to host:\n\n{markdown(rows)}"


def _details(found: Found, block: tuple[str, str], batches: Iterable[int]) -> str:
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
        ours = found.figure(block, batch, OursGraphs.name)
        for name, title in TITLES.items():
            x = found.figure(block, batch, name)
            if not x:
                continue
            times = [a / b for a, b in zip(ours.rates, x.rates, strict=True)] if ours and x is not ours else []
            tails = (number(x.percentile(share) * 1e6) for share in (95, 99))
            device = spread([s * 1e6 for s in x.device_s]) if x.device_s else NONE
            p50 = spread([s * 1e6 for s in x.medians])
            ratio = spread(times) if times else NONE
            rows.append((title, f"{batch:,}", p50, *tails, number(median(x.rates)), ratio, device, f"{x.error:.1e}"))
    return markdown(rows)


def _folding(found: Found) -> str:
    rows: list[Row] = [
        ("", "rows", "kernels, unfolded", "folded", "their µs, unfolded", "folded", "p50, µs, unfolded", "folded")
    ]
    for block in found.blocks():
        for batch in found.batches(block):
            works = [found.work_of(block, batch, kind.name) for kind in (OrtUnfolded, OrtFolded)]
            if any(works):
                runs = [found.figure(block, batch, kind.name) for kind in (OrtUnfolded, OrtFolded)]
                counts = (number(x.kernels) if x else NONE for x in works)
                times = (number(x.kernel_us) if x else NONE for x in works)
                waits = (number(median(x.medians) * 1e6) if x else NONE for x in runs)
                rows.append((_name(block), f"{batch:,}", *counts, *times, *waits))
    table = markdown(rows) if len(rows) > 1 else "not measured"
    return f"What folding saves in ONNX Runtime, a run:\n\n{table}"


def _on_the_gpu(found: Found) -> str:
    rows: list[Row] = [("", "rows", "", "kernels", "their µs", "copies", "their µs")]
    rows += [
        (
            f"{x.network} {x.precision}",
            f"{x.batch:,}",
            TITLES[x.contender],
            *map(number, (x.kernels, x.kernel_us, x.copies, x.copy_us)),
        )
        for x in found.work
        if x.kernels
    ]
    return f"What a run does on the GPU:\n\n{markdown(rows)}" if len(rows) > 1 else ""


def _served(found: Found) -> str:
    if not found.served:
        return "The service over HTTP: not measured."
    rows: list[Row] = [("", "rows", "connections", "rows/s", "p50, ms", "p95, ms", "p99, ms")]
    for x in found.served:
        tails = (number(x.percentile(share) * 1e3) for share in (95, 99))
        p50 = spread([s * 1e3 for s in x.medians])
        rows.append((f"{x.network} {x.precision}", f"{x.rows:,}", str(x.connections), spread(x.rates), p50, *tails))
    return f"The service over HTTP, binary tensors:\n\n{markdown(rows)}"


def _notes(found: Found) -> str:
    lines = dict.fromkeys(f"- {who}: {why}" for who, why in found.notes)
    return "Left out:\n\n" + "\n".join(lines) if lines else ""


def _few(batches: Sequence[int]) -> list[int]:
    """One row, some, and the most."""
    return sorted({batches[0], batches[len(batches) // 2], batches[-1]})


def _name(block: tuple[str, str]) -> str:
    return " ".join(block)
