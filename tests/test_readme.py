"""The README does what it says."""

import json
import re
from pathlib import Path

import httpx
import pytest

from foldserve.service.cli import main as foldserve
from foldserve.training.cli import main as foldserve_train
from tests.service.support import serving

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_two_commands_come_first_and_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.findall(r"^make (\w+)", README, re.M)[:2] == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in ("demo", "test"))


def test_its_curl_gets_the_answer_that_it_shows(tmp_path):
    body, shown = re.search(r"curl .*?-d '(.*?)'\n(\{.*?\})\n```", README, re.S).groups()
    with serving(ROOT / "models", tmp_path / "log") as server:
        answer = httpx.post(f"{server.url}/predict", json=json.loads(body)).raise_for_status().json()
    assert answer["predictions"] == [0]
    assert json.loads(shown)["predictions"] == answer["predictions"]


@pytest.mark.parametrize("command", sorted(set(re.findall(r"foldserve (\w+)(?= |`|$)", README)) - {"0"}))
def test_every_command_of_the_server_exists(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        foldserve([command, "--help"])
    assert stopped.value.code == 0
    assert command in capsys.readouterr().out


@pytest.mark.parametrize("command", sorted(set(re.findall(r"foldserve-train (\w+)", README))))
def test_every_command_of_the_trainer_exists(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        foldserve_train([command, "--help"])
    assert stopped.value.code == 0
    assert command in capsys.readouterr().out


def test_every_file_that_it_links_to_is_there():
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", README)
    assert links
    assert all((ROOT / link).exists() for link in links)


@pytest.mark.parametrize(
    "named", ["benchmarks/first_use.py", "tests/training/fold/test_fold.py", "tests/training/test_pipeline.py"]
)
def test_every_check_that_it_promises_is_there(named):
    assert named in README
    assert (ROOT / named).exists()


def _flags(command, capsys):
    with pytest.raises(SystemExit):
        foldserve_train([command, "--help"])
    lines = re.findall(r"^  (?:-h, )?(--[a-z-]+)(?:, (--[a-z-]+))?", capsys.readouterr().out, re.M)
    return {flag for line in lines for flag in line if flag}


def test_the_page_on_training_names_every_flag_of_fit_and_none_that_is_not_there(capsys):
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    # What is said of other programs: a benchmark, torchrun, curl.
    page = re.sub(r"<!-- ablation -->.*<!-- /ablation -->|torchrun --\S+|curl .*?\n", "", page, flags=re.S)
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", page))
    fit, diagnose = _flags("fit", capsys), _flags("diagnose", capsys)
    assert {"--target", "--no-batch-norm", "--help"} <= fit
    assert {flag for flag in fit if not flag.startswith("--no-")} <= named  # a switch's other side need not be
    assert named <= fit | diagnose
