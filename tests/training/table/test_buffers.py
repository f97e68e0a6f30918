"""Arrow columns as NumPy arrays are compared with Arrow's own conversion."""

import numpy as np
import pyarrow as pa
import pytest

from foldserve.training.table.buffers import copy_numbers, find_empty, find_nulls, replace_by_null

CHUNKS = {
    "no chunk": [],
    "an empty chunk": [[]],
    "two chunks": [[1, 2], [3]],
    "nulls": [[None, 5], [], [7, None, 9]],
    "only nulls": [[None, None]],
}


@pytest.mark.parametrize("kind", [pa.int8(), pa.int64(), pa.uint8(), pa.float32(), pa.float64()])
@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
def test_numbers_are_copied_in_the_order_of_the_chunks(kind, chunks):
    cells = pa.chunked_array([pa.array(chunk, kind) for chunk in chunks], kind)
    expected = [8 if value is None else value for chunk in chunks for value in chunk]
    for part, wanted in ((cells, expected), (cells.slice(1), expected[1:])):
        found = copy_numbers(part, 8)
        assert found.dtype == kind.to_pandas_dtype()
        assert found.tolist() == wanted
        assert found.flags.writeable
        assert find_nulls(part).tolist() == part.is_null().to_pylist()


def test_a_null_of_floating_point_numbers_can_be_nan():
    found = copy_numbers(pa.chunked_array([[1.5, None, float("nan")]]), np.nan)
    np.testing.assert_array_equal(found, [1.5, np.nan, np.nan])


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_empty_texts_are_found_and_replaced(kind):
    texts = pa.chunked_array([pa.array(["", "a", None], kind), pa.array([" ", ""], kind)])
    empty = find_empty(texts)
    assert empty.to_pylist() == [True, False, None, False, True]
    assert replace_by_null(texts, empty).to_pylist() == [None, "a", None, " ", None]
    assert replace_by_null(texts, empty).type == kind
