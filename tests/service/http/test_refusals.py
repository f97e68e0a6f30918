"""Each invalid request over HTTP gets a fixed text, and the connection stays usable.

The tests send every request in both protocols, once on the fast path and once through FastAPI's route. FastAPI's route
serves paths with a percent-encoded letter.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from foldserve.service import bundle
from tests.service.support import (
    MARKER,
    Answer,
    Served,
    flip_byte,
    receive,
    request,
    serving,
    square_root,
    write_square_root,
)

MAX_ROWS = 4

PATHS = {"friendly": "/v1/models/{}:predict", "oip": "/v2/models/{}/infer"}
GOOD = {
    "friendly": b'{"instances": [[1, 3]]}',
    "oip": b'{"inputs": [{"name": "input", "shape": [1, 2], "datatype": "FP32", "data": [1, 3]}]}',
}
protocols = pytest.mark.parametrize("protocol", list(PATHS))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve roots/1, the square root of a + b, and roots/2, whose model does not match its manifest."""
    folder = tmp_path_factory.mktemp("refusals")
    (folder / "models").mkdir()
    write_square_root(folder / "models")
    second = write_square_root(folder / "models")
    flip_byte(second.path / bundle.MODEL_FILE, len(square_root()[0]) // 2)
    with serving(folder / "models", folder / "log", "--max-rows", MAX_ROWS) as server:
        yield server


def both_ways(served: Served, path: str, protocol: str, body: bytes) -> Answer:
    """Send a body on the fast path and through FastAPI's route.

    Check that both responses are equal. Check that a good request on the same connection succeeds after each response.
    """
    answers = []
    for spelling in (path, path.replace("/models/", "/m%6fdels/", 1)):
        with served.connect() as connection:
            connection.sendall(request("POST", spelling, "Content-Type: application/json", body=body))
            answers.append(receive(connection))
            connection.sendall(request("POST", PATHS[protocol].format("roots"), body=GOOD[protocol]))
            assert receive(connection).status == 200
    first = answers[0]
    for other in answers[1:]:
        assert (other.status, other.body) == (first.status, first.body)
        assert other.headers.keys() == first.headers.keys()
    return first


def error(answer: Answer, status: int) -> str:
    """Check that an answer is an error in the common form and does not repeat the input. Return the error's text."""
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/json"
    (name, text) = next(iter(answer.json().items()))
    assert (name, len(answer.json())) == ("error", 1)
    assert MARKER not in text
    assert "\n" not in text
    return str(text)


@protocols
def test_a_good_request_gets_the_same_response_both_ways(protocol: str, served: Served) -> None:
    answer = both_ways(served, PATHS[protocol].format("roots"), protocol, GOOD[protocol])
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    found = answer.json()
    assert (found["predictions"] if protocol == "friendly" else found["outputs"][0]["data"]) == [2]


# --- bodies that are not JSON ----------------------------------------------------------------------------------------


def bodies(values: bytes, rows: int = 1, before: bytes = b"") -> dict[str, bytes]:
    """Return a body for each protocol, with `values` where the rows belong."""
    tensor = b'{"name": "input", "shape": [%d, 2], "datatype": "FP32", "data": %s}' % (rows, values)
    return {
        "friendly": b'{%s"instances": %s}' % (before, values),
        "oip": b'{%s"inputs": [%s]}' % (before, tensor),
    }


marked = b'"%s": 0, ' % MARKER.encode()
ROW = b"[[1, 3]]"
NOT_JSON = {
    "20 invalid UTF-8": bodies(b'[["%s\xff", 2]]' % MARKER.encode()),
    "20 a surrogate in UTF-8": bodies(b'[["%s\xed\xa0\x80", 2]]' % MARKER.encode()),
    "21 UTF-16": {name: body.decode().encode("utf-16") for name, body in bodies(ROW).items()},
    "21 UTF-16 without a mark": {name: body.decode().encode("utf-16-le") for name, body in bodies(ROW).items()},
    "21 a byte order mark": {name: b"\xef\xbb\xbf" + body for name, body in bodies(ROW).items()},
    "22 nested 100,000 deep": bodies(b"[" * 100_000 + MARKER.encode() + b"]" * 100_000),
    "22 nested objects": bodies(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "22 nested and nothing else": dict.fromkeys(PATHS, b"[" * 100_000),
    "23 5,000 digits": bodies(b"[[%s, 2]]" % (b"1" * 5000), before=marked),
    "23 minus 5,000 digits": bodies(b"[[1, -%s]]" % (b"1" * 5000), before=marked),
    "24 NaN": bodies(b"[[NaN, 2]]", before=marked),
    "24 Infinity": bodies(b"[[Infinity, 2]]", before=marked),
    "24 -Infinity": bodies(b"[[1, -Infinity]]", before=marked),
    "24 1e999": bodies(b"[[1, 1e999]]", before=marked),
    "25 trailing bytes": {name: body + MARKER.encode() for name, body in bodies(ROW).items()},
    "25 a trailing zero": {name: body + b"\0" for name, body in bodies(ROW).items()},
    "25 two documents": {name: body * 2 for name, body in bodies(ROW).items()},
    "25 empty": dict.fromkeys(PATHS, b""),
    "25 blank": dict.fromkeys(PATHS, b" \r\n"),
    "25 cut": {name: body[:-1] for name, body in bodies(ROW).items()},
    "26 a lone surrogate": bodies(b'[["%s\\ud800", 2]]' % MARKER.encode()),
    "26 a lone surrogate in a name": bodies(ROW, before=b'"%s\\udc00": 0, ' % MARKER.encode()),
}


@pytest.mark.parametrize("case", list(NOT_JSON))
@protocols
def test_a_body_that_is_not_json_is_refused(protocol: str, case: str, served: Served) -> None:
    answer = both_ways(served, PATHS[protocol].format("roots"), protocol, NOT_JSON[case][protocol])
    # The server cuts a large body into pieces before it parses them. If the body has no array of rows, the server may
    # find this out while it cuts, and refuse the body.
    large = "22 nested" in case
    allowed = ("the body is not valid JSON, at character ", *(["the JSON has no array "] if large else []))
    assert error(answer, 400).startswith(allowed)


# --- JSON that is not rows of the model ------------------------------------------------------------------------------

NOT_A_NUMBER = "row 0, column 'a' is not a number"
TOO_LARGE = "row 1, column 'b' is too large for float32"
NULL = "row 0, column 'b' is null, and the feature has no missing values"
WRONG_SHAPE = "the shape of 'input' is not [rows, 2] with at least one row"
NOT_ROWS = {
    "27 true": (bodies(b"[[true, 2]]"), NOT_A_NUMBER, NOT_A_NUMBER),
    "27 a string": (bodies(b'[["1.5", 2]]'), NOT_A_NUMBER, NOT_A_NUMBER),
    "27 a text": (bodies(b'[["%s", 2]]' % MARKER.encode()), NOT_A_NUMBER, NOT_A_NUMBER),
    "27 an object": (bodies(b"[[{}, 2]]"), NOT_A_NUMBER, NOT_A_NUMBER),
    "27 an array": (bodies(b"[[[1], 2]]"), NOT_A_NUMBER, NOT_A_NUMBER),
    "28 1e300": (bodies(b"[[1, 3], [1, 1e300]]", 2), TOO_LARGE, TOO_LARGE),
    "28 -1e300": (bodies(b"[[1, 3], [1, -1e300]]", 2), TOO_LARGE, TOO_LARGE),
    "28 3.5e38": (bodies(b"[[1, 3], [1, 3.5e38]]", 2), TOO_LARGE, TOO_LARGE),
    "29 ragged": (
        bodies(b"[[1, 2], [3]]", 2),
        "row 1 has 1 values, expected 2",
        "the \"data\" of 'input' is not 2 rows of 2 values",
    ),
    "29 ragged, and the total fits": (
        bodies(b"[[1, 2, 3], [4]]", 2),
        "row 0 has 3 values, expected 2",
        "the \"data\" of 'input' is not 2 rows of 2 values",
    ),
    "30 a name is missing": (
        {
            "friendly": b'{"instances": [{"a": 1}]}',
            "oip": b'{"inputs": [{"shape": [1, 2], "datatype": "FP32", "data": [1, 3]}]}',
        },
        "row 0 lacks the feature 'b'",
        '"inputs" has a tensor without a name, number 1',
    ),
    "30 a name is unknown": (
        {
            "friendly": b'{"instances": [{"a": 1, "b": 3, "<%s>": 1}]}' % MARKER.encode(),
            "oip": GOOD["oip"].replace(b'"input"', b'"%s"' % MARKER.encode()),
        },
        "row 0 has an unknown member, number 3",
        "the shape of tensor number 1 is neither [rows] nor [rows, 1] with at least one row",
    ),
    "31 no rows": (bodies(b"[]", 0), '"instances" has no rows', WRONG_SHAPE),
    "31 an empty row": (
        bodies(b"[[]]"),
        "row 0 has 0 values, expected 2",
        "the \"data\" of 'input' is not 1 rows of 2 values",
    ),
    "32 more rows than the cap": (
        bodies(b"[[1, 3], [1, 3], [1, 3], [1, 3], [1, 3]]", 5),
        '"instances" has more rows than the 4 that are allowed',
        "'input' has more rows than the 4 that are allowed",
    ),
    "33 null": (bodies(b"[[1, null]]"), NULL, NULL),
    "not an object": (
        dict.fromkeys(PATHS, b"[1]"),
        'the body is not an object with an array "instances"',
        'the body is not an object with an array "inputs"',
    ),
    "the other protocol's": (
        {"friendly": GOOD["oip"], "oip": GOOD["friendly"]},
        'the body is not an object with an array "instances"',
        'the body is not an object with an array "inputs"',
    ),
}


@pytest.mark.parametrize("case", list(NOT_ROWS))
@protocols
def test_a_body_that_is_not_rows_of_the_model_is_refused(protocol: str, case: str, served: Served) -> None:
    body, friendly, oip = NOT_ROWS[case]
    for path in (PATHS[protocol].format("roots"), PATHS[protocol].format("roots/versions/1")):
        answer = both_ways(served, path, protocol, body[protocol])
        assert error(answer, 400) == {"friendly": friendly, "oip": oip}[protocol]


@protocols
def test_a_row_whose_output_is_not_finite_is_a_422(protocol: str, served: Served) -> None:
    answer = both_ways(served, PATHS[protocol].format("roots"), protocol, bodies(b"[[1, 3], [-1, 0]]", 2)[protocol])
    assert error(answer, 422) == "the model gives an output that is not finite for row 1"


# --- names and versions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *(MARKER, "Roots", "root", "roots2", "roots%20", "..", ".", "%2e%2e", "%2E%2E%2Froots", "%00", "roots%00"),
        *("%ff", "..;", "..;/roots", "%c0%ae", "%e2%80%ae", "*", "{model}", "~", "a" * 5000, "roots/versions/1/x"),
    ],
    ids=lambda name: name[:20],
)
@protocols
def test_an_unknown_name_is_not_found(protocol: str, name: str, served: Served) -> None:
    for path in (PATHS[protocol].format(name), PATHS[protocol].format(f"{name}/versions/1")):
        error(both_ways(served, path, protocol, GOOD[protocol]), 404)


@pytest.mark.parametrize(
    "version", ["3", "0", "01", "-1", "1.0", "+1", "1_0", "one", "%31%00", "%20", "1%20", "%d9%a1", "%ff", "9" * 30]
)
@protocols
def test_an_unknown_version_is_not_found(protocol: str, version: str, served: Served) -> None:
    path = PATHS[protocol].format(f"roots/versions/{version}")
    assert error(both_ways(served, path, protocol, GOOD[protocol]), 404) == "unknown version of this model"


@protocols
def test_a_refused_version_is_not_ready(protocol: str, served: Served) -> None:
    path = PATHS[protocol].format("roots/versions/2")
    assert error(both_ways(served, path, protocol, GOOD[protocol]), 503) == "the model is not ready"


def test_the_refusals_left_no_traceback_and_no_input_in_the_log(served: Served) -> None:
    # This test runs after the tests above, on the same server.
    log = served.log.read_text()
    assert "Traceback" not in log
    assert "Warning" not in log
    assert MARKER not in log
