"""An idle model predicts a golden row every few seconds. If the prediction of a golden row fails, the model is not
ready until such a prediction succeeds.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.service.http.test_workers import until
from tests.service.live.versions import BODY, publish
from tests.service.support import serving


def test_an_idle_model_that_fails_is_not_ready_until_it_succeeds(tmp_path: Path) -> None:
    publish(tmp_path / "models", 1)
    faults = tmp_path / "faults.json"
    program, flags = "tests.service.serve_with_faults", ("--self-check", 0.05, "--faults", faults)
    with serving(tmp_path / "models", tmp_path / "log", *flags, program=program) as server:
        assert server.send("GET", "/v2/health/ready").status == 200
        faults.write_text(json.dumps({"fail": 1}))
        until(lambda: server.send("GET", "/v2/health/ready").status == 503)
        assert server.send("GET", "/v2/health/live").status == 200
        answer = server.send("POST", "/predict", body=BODY)
        assert (answer.status, answer.json()) == (503, {"error": "the model is not ready"})
        (version,) = server.send("GET", "/v1/models/roots").json()["versions"]
        assert (version["state"], version["why"]) == ("failing", "the model failed to run")
        index = server.send("POST", "/v2/repository/index").json()
        assert index == [{"name": "roots", "version": "1", "state": "UNAVAILABLE", "reason": "the model failed to run"}]
        faults.write_text("{}")
        until(lambda: server.send("GET", "/v2/health/ready").status == 200)
        assert server.send("POST", "/predict", body=BODY).status == 200
    assert "roots/1 fails its check: the model failed to run" in server.log.read_text()
