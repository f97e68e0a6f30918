from pathlib import Path

import pandas as pd
import pytest

import foldserve

PENGUINS = Path(__file__).parents[2] / "examples" / "penguins.csv"


@pytest.fixture(scope="session")
def penguins():
    """The table of penguins that the README uses. The index of the table differs from the row numbers."""
    frame = pd.read_csv(PENGUINS)
    return frame.set_index(pd.Index(range(1000, 1000 + len(frame)), name="id"))


@pytest.fixture(scope="session")
def bundle(penguins, tmp_path_factory):
    models = tmp_path_factory.mktemp("penguins") / "models"
    return foldserve.fit(penguins, target="species", name="penguins", models=models, epochs=10)


@pytest.fixture(scope="session")
def model(bundle):
    return foldserve.load(bundle.path)
