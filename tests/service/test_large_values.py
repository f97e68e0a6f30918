"""Numbers whose squares are too large for their type are numbers like any other."""

import asyncio
import warnings

import httpx
import numpy as np
import pytest

from service.batcher import Batcher
from tests.service.support import serving, write_roots


@pytest.mark.parametrize("path", ["/v1/models/roots:predict", "/v2/models/roots/infer"])
@pytest.mark.parametrize("value", [1e160, 1e300])
def test_a_number_that_is_too_large_is_refused_where_it_stands(path, value, tmp_path):
    write_roots(tmp_path)
    tensor = {"name": "input", "shape": [1, 2], "datatype": "FP64", "data": [[1, value]]}
    body = {"instances": [[1, value]]} if path.endswith(":predict") else {"inputs": [tensor]}
    with serving(tmp_path, tmp_path / "log") as server:
        answer = httpx.post(server.url + path, json=body)
    assert (answer.status_code, answer.json()) == (400, {"error": "row 0, column 'b' is too large for float32"})


@pytest.mark.parametrize("largest", [1e20, float(np.finfo(np.float32).max)])
def test_large_outputs_come_back_without_a_warning(largest):
    rows = np.array([[largest, -largest]], np.float32)

    async def answered() -> np.ndarray:
        done = asyncio.get_running_loop().create_future()
        batcher = Batcher(lambda given: given, max_batch=4, max_queue=4, max_delay=0)
        batcher.submit(rows, asyncio.get_running_loop().time() + 60, done.set_result)
        try:
            return await asyncio.wait_for(done, 60)
        finally:
            batcher.close()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(asyncio.run(answered()), rows)
