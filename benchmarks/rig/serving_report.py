"""Writes the tables of benchmarks/serving.py: foldserve and its targets, then every contender."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from rig.cases import BARE, BARE_TITLE, CONTENDERS, JSON_LOADS, OURS, TARGETS, Load, Target, case
from rig.report import NONE, Row, markdown, median_and_range, number, target_row
from rig.rounds import Round
from rig.wrk import Figures

_FIGURES = ("rows_per_second", "p50_ms", "p99_ms")
# Targets.
READY_S = 0.7
RESIDENT_MB = 110
TELEMETRY_RATIO = 0.9
P99_TO_P50 = 4
MEMORY_GROWTH = 1.05

Soak = tuple[Figures, float, float]


def targets(rounds: Sequence[Round], telemetry: list[float] | str | None, soak: Soak | str | None) -> str:
    """Write the table of targets. If `telemetry` or `soak` has no figures, the argument is a text with the reason."""
    rows: list[Row] = [("foldserve", "median (lowest to highest)", "target", "")]
    rows += [_ratio_row(rounds, target) for target in TARGETS]
    if telemetry is not None:
        text = "metrics and access log on: rows/s ÷ both off"
        rows.append(target_row(text, telemetry, TELEMETRY_RATIO, at_least=True))
    if isinstance(soak, str):
        rows.append(target_row("64 connections held", soak, P99_TO_P50, at_least=False))
    elif soak:
        figures, before, after = soak
        rows.append(
            target_row("64 connections held: p99 ÷ p50", [figures.p99_ms / figures.p50_ms], P99_TO_P50, at_least=False)
        )
        text = f"64 connections held: memory after ({after:.1f} MB) ÷ before"
        rows.append(target_row(text, [after / before], MEMORY_GROWTH, at_least=False))
    for text, values, bound in (
        ("start to ready, s", [x.ready_s["foldserve"] for x in rounds if "foldserve" in x.ready_s], READY_S),
        ("resident, MB", [x.resident_mb["foldserve"] for x in rounds if "foldserve" in x.resident_mb], RESIDENT_MB),
    ):
        rows.append(target_row(text, values, bound, at_least=False))
    return markdown(rows)


def _ratio_row(rounds: Sequence[Round], target: Target) -> Row:
    return target_row(target.text, ratios(rounds, target), target.bound, at_least=target.at_least)


def ratios(rounds: Sequence[Round], target: Target) -> list[float]:
    """Return the ratio for each round that has both figures."""
    both = [x.figures for x in _both(rounds, target.ours, target.theirs)]
    return [getattr(x[target.ours], target.figure) / getattr(x[target.theirs], target.figure) for x in both]


def contenders(rounds: Sequence[Round]) -> str:
    """Write a table of every contender for each load, then a table of start times and memory."""
    parts = [f"{_title(load)}:\n\n{_load_table(rounds, load)}" for load in JSON_LOADS]
    rows: list[Row] = [("", "start to ready, s", "resident, MB")]
    for contender in CONTENDERS:
        ready = [x.ready_s[contender.name] for x in rounds if contender.name in x.ready_s]
        resident = [x.resident_mb[contender.name] for x in rounds if contender.name in x.resident_mb]
        if ready and resident:
            rows.append((contender.title, number(median(ready)), number(median(resident))))
    return "\n\n".join([*parts, f"Start and memory:\n\n{markdown(rows)}"])


def _title(load: Load) -> str:
    rows, connections = ("s" if count > 1 else "" for count in (load.rows, load.connections))
    return f"{load.rows:,} row{rows} per request, {load.connections} connection{connections}"


def _load_table(rounds: Sequence[Round], load: Load) -> str:
    endpoints = [(x.title, x.name, endpoint.protocol) for x in CONTENDERS for endpoint in x.endpoints]
    found: list[tuple[float, Row]] = []
    for title, name, protocol in [*endpoints, (BARE_TITLE, BARE, "none")]:
        key = case(name, protocol, load)
        figures = [x.figures[key] for x in rounds if key in x.figures]
        if figures:
            rate, p50, p99 = (median(getattr(x, figure) for x in figures) for figure in _FIGURES)
            ratios_to_ours = [
                x.figures[OURS[load]].rows_per_second / x.figures[key].rows_per_second
                for x in _both(rounds, OURS[load], key)
            ]
            cells = (
                number(rate),
                median_and_range(ratios_to_ours) if ratios_to_ours and key != OURS[load] else NONE,
                number(p50),
                number(p99),
            )
            found.append((rate, (title, protocol, *cells)))
    found.sort(key=lambda one: -one[0])
    return markdown(
        [
            ("", "protocol", "rows/s", "foldserve ÷ this", "p50, ms", "p99, ms"),
            *(row for _, row in found),
        ]
    )


def _both(rounds: Sequence[Round], *keys: str) -> list[Round]:
    return [x for x in rounds if x.figures.keys() >= set(keys)]
