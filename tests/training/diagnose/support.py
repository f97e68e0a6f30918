"""The sample, plan and oracles that the tests of the diagnosis share."""

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import torch
from torch import nn

from foldserve.training.diagnose.plan import DiagnosisPlan
from foldserve.training.diagnose.sample import Sample
from foldserve.training.fit.loop import Examples
from foldserve.training.plan import DataOptions, Plan, Recipe

NAN = math.nan
TINY = DiagnosisPlan(
    steps=6,
    depths=(4,),
    gradient_steps=2,
    batch_sizes=(2, 16),
    mode_steps=5,
    latency_batches=(1, 8),
    rounds=2,
    repeats=2,
)
# The plan of the user's own recipe, which the diagnosis studies.
OWN = Plan(DataOptions("iris"), "made", Path(), recipe=Recipe(epochs=2))


def nothing(*_):
    pass


def small_sample(rows=12, features=3, classes=3):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(rows, features, generator=generator)
    part = Examples(x, torch.randint(classes, (rows,), generator=generator))
    return Sample("made", True, classes, part, part, rows)


def forward(layers, x, *, training):
    """Compute the layers of a network in NumPy. Return the input of every layer, then the output. rows: float64 [rows,
    features].
    """
    seen = [x]
    for layer in layers:
        if isinstance(layer, nn.Linear):
            x = x @ layer.weight.detach().double().numpy().T
            if layer.bias is not None:
                x = x + layer.bias.detach().double().numpy()
        elif isinstance(layer, nn.BatchNorm1d):
            mean, var = (
                (x.mean(0), x.var(0)) if training else (layer.running_mean.numpy(), layer.running_var.double().numpy())
            )
            x = (x - mean) / np.sqrt(var + layer.eps) * layer.weight.detach().numpy() + layer.bias.detach().numpy()
        elif isinstance(layer, nn.Sigmoid):
            x = 1 / (1 + np.exp(-x))
        else:
            x = np.maximum(x, 0)
        seen.append(x)
    return seen


def log_loss(logits, y):
    logits = logits - logits.max(1, keepdims=True)
    return float(np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]))


class Reader(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.captions, self.svgs = [], 0, 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


def assert_complete(text):
    """Check that the page loads no other file, and that each picture has a caption and a description."""
    tags = Reader(text).tags
    for tag, attributes in tags:
        assert tag not in {"script", "link", "img", "iframe", "object", "base", "metadata"}
        for name, value in attributes.items():
            if name in {"src", "href", "xlink:href"}:
                assert value.startswith("#")
            if not name.startswith("xmlns"):
                assert "//" not in (value or "")
    assert not re.search(r"@import|url\((?!#)", text)
    names = [tag for tag, _ in tags]
    assert names.count("figure") == names.count("figcaption") == 10
    assert all(attributes["aria-label"] for tag, attributes in tags if tag == "svg")
