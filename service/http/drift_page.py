"""Shows the drift of one version as an HTML page. The page has no script and loads no file.

The only style sheet is `_STYLE`, and the content security policy allows it by its hash. This module does not depend on
routes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from html import escape

from foldserve.service.quality.document import Drift, FeatureDrift, Quality

_STYLE = """
:root { color-scheme: light dark; --text: #1c1c1c; --quiet: #595959; --line: #d0d0d0; --back: #fff; --train: #c4ccd8;
  --live: #0b57d0; --bad: #a8071a; --warn: #7a4b00; --good: #1a6b2d; }
@media (prefers-color-scheme: dark) { :root { --text: #ececec; --quiet: #a8a8a8; --line: #444; --back: #161616;
  --train: #4a5464; --live: #8ab4f8; --bad: #ff8a80; --warn: #f5c26b; --good: #81c995; } }
body { margin: 0 auto; padding: 1rem; max-width: 64rem; font: 1rem/1.45 system-ui, sans-serif; color: var(--text);
  background: var(--back); }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.quiet { color: var(--quiet); } .drift { color: var(--bad); font-weight: 600; }
.moderate { color: var(--warn); font-weight: 600; } .stable { color: var(--good); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem .35rem 0; text-align: left; border-bottom: 1px solid var(--line); }
td.number, th.number { text-align: right; }
svg { display: block; } .train { fill: var(--train); } .live { fill: none; stroke: var(--live); stroke-width: 2; }
"""

_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_HASH}'; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Vary": "Accept",
}
_CLASSES = {"drift": "drift", "moderate drift": "moderate", "stable": "stable"}
_WIDTH, _HEIGHT = 130, 36
_MOST_BARS = 40
# The page shows at most this number of features. The features with the largest drift index come first.
_MOST_FEATURES = 200
_MEASURES = {"accuracy": "accuracy", "log_loss": "log loss", "rmse": "RMSE", "mae": "MAE"}


def drift_page(drift: Drift) -> str:
    """Return the page."""
    title = f"Drift of {drift.model}, version {drift.version}"
    kinds = _MEASURES if drift.quality.test or drift.quality.live else {}
    return "".join(
        (
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main><h1>{escape(title)}</h1>",
            f'<p>State: <strong class="{_CLASSES.get(drift.state, "")}">{escape(drift.state)}</strong></p>',
            f'<p class="quiet">{_window(drift)}</p>',
            *(f"<p>{escape(note)}</p>" for note in drift.notes),
            _features(drift.features) if drift.state != "off" else "",
            _predictions(drift),
            _quality(drift.quality, kinds),
            "</main></body></html>",
        )
    )


def _window(drift: Drift) -> str:
    counted = f", of which {drift.counted:,} were counted" if drift.sampled else ""
    return (
        f"{drift.rows:,} rows since {drift.since:%Y-%m-%d %H:%M} UTC{counted}. The window has at most "
        f"{drift.window_hours:g} hours. An index below {drift.thresholds['moderate drift']:g} is stable; from "
        f"{drift.thresholds['drift']:g} on, it is a drift."
    )


def _features(features: Sequence[FeatureDrift]) -> str:
    shown = sorted(features, key=lambda feature: -(feature.psi or 0.0))[:_MOST_FEATURES]
    rows = [
        (
            escape(feature.name),
            f'<span class="{_CLASSES.get(feature.state, "quiet")}">{escape(feature.state)}</span>',
            _histogram(feature),
            _number(feature.psi),
            _percent(feature.missing),
            _percent(feature.training_missing),
            _percent(feature.unseen if feature.kind == "categorical" else _outside(feature)),
        )
        for feature in shown
    ]
    heads = ("feature", "state", "training and live", "index (PSI)", "missing", "in training", "outside or unseen")
    rest = len(features) - len(shown)
    more = f'<p class="quiet">{rest:,} more features have a smaller index. The JSON has all.</p>' if rest else ""
    caption = "The largest index first. Grey: training rows. Line: live rows."
    return "<h2>Features</h2>" + _table(caption, heads, rows, range(3, 7)) + more


def _outside(feature: FeatureDrift) -> float | None:
    return None if feature.below is None or feature.above is None else feature.below + feature.above


def _histogram(feature: FeatureDrift) -> str:
    """In each bin, draw the share of training rows as a bar, and the share of live rows as a step of a line."""
    training, live = (_shares(counts[:_MOST_BARS]) for counts in (feature.training, feature.live))
    top = max(*training, *live, 1e-9)
    step = _WIDTH / len(training)
    bars = "".join(
        f'<rect class="train" x="{i * step:.1f}" y="{_HEIGHT * (1 - share / top):.1f}" width="{step * 0.9:.1f}" '
        f'height="{_HEIGHT * share / top:.1f}"/>'
        for i, share in enumerate(training)
    )
    steps = "".join(f"V{_HEIGHT * (1 - share / top):.1f}H{(i + 1) * step:.1f}" for i, share in enumerate(live))
    line = f'<path class="live" d="M0 {_HEIGHT}{steps}V{_HEIGHT}"/>' if any(live) else ""
    label = f"Histogram of {feature.name}"
    return (
        f'<svg viewBox="0 -1 {_WIDTH} {_HEIGHT + 2}" width="{_WIDTH}" height="{_HEIGHT}" role="img" '
        f'aria-label="{escape(label)}">{bars}{line}</svg>'
    )


def _shares(counts: Sequence[float]) -> list[float]:
    total = sum(counts)
    return [count / total if total else 0.0 for count in counts]


def _predictions(drift: Drift) -> str:
    predictions = drift.predictions
    if predictions.labels is not None:
        ordered = sorted(predictions.labels, key=lambda each: -(each.share or 0.0))[:_MOST_FEATURES]
        rows = [(escape(str(each.label)), _percent(each.share)) for each in ordered]
        mean = _percent(predictions.confidence)
        caption = f"Mean probability of the predicted label: {mean}"
        return "<h2>Predictions</h2>" + _table(caption, ("label", "share of the rows"), rows, (1,))
    values = _number(predictions.mean), _number(predictions.deviation)
    return f"<h2>Predictions</h2><p>Mean {values[0]}, standard deviation {values[1]}.</p>"


def _quality(quality: Quality, measures: dict[str, str]) -> str:
    if quality.state == "off":
        return ""
    live, test = quality.live or {}, quality.test or {}
    rows = [
        (name, _number(live.get(key)), _number(test.get(key)))
        for key, name in measures.items()
        if key in live or key in test
    ]
    caption = f"{quality.labels:,} live labels: {quality.state}"
    if quality.accuracy_interval is not None:
        low, high = quality.accuracy_interval
        caption += f". 95% interval of the live accuracy: {_percent(low)} to {_percent(high)}"
    return "<h2>Quality</h2>" + _table(caption, ("measure", "live", "test rows"), rows, (1, 2))


def _table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int]) -> str:
    """Return an HTML table. rows: the cells of each row, as HTML.

    numbers: the indices of the columns with numbers, which are aligned to the right.
    """
    right = dict.fromkeys(numbers, ' class="number"')
    head = "".join(f'<th scope="col"{right.get(i, "")}>{escape(text)}</th>' for i, text in enumerate(heads))
    body = "".join(
        "<tr>" + "".join(f"<td{right.get(i, '')}>{cell}</td>" for i, cell in enumerate(row)) + "</tr>" for row in rows
    )
    table = f'<table aria-label="{escape(caption)}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    # The caption stands outside the table. Inside the table, the caption would be as wide as the table, and a phone
    # would not show the end of the caption.
    return f'<p class="quiet">{escape(caption)}</p><div class="wide" tabindex="0">{table}</div>'


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "—" if value is None else f"{100 * value:.1f}%"
