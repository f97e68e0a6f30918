"""The server names exactly those extensions of the Open Inference Protocol that it serves."""

import httpx

from tests.service.support import serving, write_square_root


def test_the_statistics_of_all_models_are_not_a_model_named_stats(tmp_path):
    write_square_root(tmp_path)
    write_square_root(tmp_path)
    with serving(tmp_path, tmp_path / "log") as server:
        answer = httpx.get(f"{server.url}/v2/models/stats").raise_for_status().json()
    found = [(stats["name"], stats["version"]) for stats in answer["model_stats"]]
    assert sorted(found) == [("roots", "1"), ("roots", "2")]


def test_without_metrics_the_server_does_not_name_the_statistics(tmp_path):
    write_square_root(tmp_path)
    with serving(tmp_path, tmp_path / "log", "--no-metrics") as server:
        named = httpx.get(f"{server.url}/v2").raise_for_status().json()["extensions"]
        assert httpx.get(f"{server.url}/v2/models/roots/stats").status_code == 404
    assert "statistics" not in named
    assert "model_configuration" in named
