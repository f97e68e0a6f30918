"""The columns of the prediction log of one model: a request's data, the features, and the answers.

This module does not depend on files.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from foldserve.service.arrays import Outputs, Rows
from foldserve.service.bundle import Manifest
from foldserve.service.tables import AnswerColumns, TableDecoder


@dataclass(frozen=True, slots=True)
class Sample:
    """One answered request. time: the time of the request in microseconds since 1970.

    rows, outputs: float32 [rows, ...].
    """

    time: int
    request_id: str | None
    rows: Rows
    outputs: Outputs

    @property
    def size(self) -> int:
        """The size of the arrays in bytes."""
        return self.rows.nbytes + self.outputs.nbytes


class LogColumns:
    """The columns of one version of a model. excluded: the names of columns that are left out.

    In the log, a feature keeps its name. If a feature and a column of the log have the same name, the column of the log
    gets an underscore at the end. renamed: the old and the new names of the renamed columns. unknown: the names in
    `excluded` that no column has.
    """

    def __init__(self, manifest: Manifest, excluded: Collection[str]) -> None:
        self._manifest = manifest
        self._features = TableDecoder(manifest.features)
        self._answers = AnswerColumns(manifest, with_all=True)
        request = [
            pa.field("time", pa.timestamp("us", "UTC")),
            pa.field("request_id", pa.string()),
            pa.field("row", pa.int32()),
            pa.field("model", pa.string()),
            pa.field("version", pa.int64()),
        ]
        taken = {field.name for field in self._features.fields}
        named, self.renamed = [], {}
        for field in [*request, *self._answers.fields]:
            name = field.name
            while name in taken:
                name += "_"
            if name != field.name:
                self.renamed[field.name] = name
            taken.add(name)
            named.append(field.with_name(name))
        fields = [*named[: len(request)], *self._features.fields, *named[len(request) :]]
        self._kept = [place for place, field in enumerate(fields) if field.name not in excluded]
        self.unknown = sorted(set(excluded) - {field.name for field in fields})
        self.schema = pa.schema([fields[place] for place in self._kept])

    def table(self, samples: Sequence[Sample]) -> pa.Table:
        """Return a table that has one row for each row of each sample."""
        counts = [len(sample.rows) for sample in samples]
        times = np.repeat(np.array([sample.time for sample in samples], np.int64), counts)
        ids = pa.array([sample.request_id for sample in samples], pa.string())
        names, version = self._manifest.name, self._manifest.version
        request = [
            pa.array(times, pa.int64()).cast(pa.timestamp("us", "UTC")),
            ids.take(pa.array(np.repeat(np.arange(len(samples)), counts))),
            pa.array(np.concatenate([np.arange(count, dtype=np.int32) for count in counts])),
            pa.repeat(pa.scalar(names, pa.string()), len(times)),
            pa.repeat(pa.scalar(version, pa.int64()), len(times)),
        ]
        features = self._features.columns(np.concatenate([sample.rows for sample in samples]))
        answers = self._answers.columns(np.concatenate([sample.outputs for sample in samples]))
        columns = [*request, *features, *answers]
        return pa.Table.from_arrays([columns[place] for place in self._kept], schema=self.schema)
