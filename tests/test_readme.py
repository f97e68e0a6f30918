"""The README is correct: its commands, its first prediction, its links and its figures."""

import io
import json
import re
import shlex
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from foldserve.service.cli import main as foldserve
from foldserve.training.cli import main as foldserve_train
from tests.service.support import serving

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BENCHMARKS = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_two_commands_come_first_and_exist():
    assert re.findall(r"^make (\w+)", README, re.M)[:2] == ["demo", "test"]


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([a-z-]+)", README))))
def test_every_target_of_make_exists(target):
    assert re.search(rf"^{target}:", MAKEFILE, re.M)


@dataclass(frozen=True)
class Story:
    models: Path
    printed: str


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """Run the README's training once, in a folder with its examples."""
    folder = tmp_path_factory.mktemp("story")
    (folder / "examples").symlink_to(ROOT / "examples")
    (command,) = re.findall(r"^\$ foldserve-train (fit .*)$", README, re.M)
    words = shlex.split(command)
    models = folder / words[words.index("--models") + 1]
    models.mkdir()
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.chdir(folder)
        patch.setenv("COLUMNS", "240")
        assert foldserve_train(words) == 0
    return Story(models, printed.getvalue())


def test_the_training_prints_the_lines_that_it_shows(story):
    (shown,) = re.findall(r"^\$ foldserve-train fit .*?\n(.*?)^```", README, re.M | re.S)

    def steady(text):
        """Return the labels of all lines, and the lines whose figures are the same on every machine."""
        lines = [re.sub(r"/\d+ in .*", "", line) for line in text.splitlines()]
        return [line if line.startswith(("columns", "target", "table", "wrote")) else line[:12] for line in lines]

    assert steady(story.printed) == steady(shown)


def test_its_curl_gets_the_predictions_that_it_shows(story, tmp_path):
    (command,) = re.findall(r"^foldserve (serve --models \S+)$", README, re.M)
    assert command.endswith(story.models.name)
    body, shown = re.search(r"curl .*?-d '(.*?)'\n(\{.*?\})\n```", README, re.S).groups()
    with serving(story.models, tmp_path / "log") as server:
        answer = httpx.post(f"{server.url}/predict", json=json.loads(body)).raise_for_status().json()
    expected = json.loads(shown)
    assert answer["predictions"] == expected["predictions"] == ["Gentoo", "Chinstrap"]
    assert answer.keys() == expected.keys()


def test_the_page_on_training_shows_predictions_of_the_same_model(story, tmp_path):
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    body, shown = re.search(r"curl .*?-d '(.*?)'\n(\{.*?\})\n```", page, re.S).groups()
    with serving(story.models, tmp_path / "log") as server:
        answer = httpx.post(f"{server.url}/predict", json=json.loads(body)).raise_for_status().json()
    assert answer["predictions"] == json.loads(shown)["predictions"]


def test_its_refusal_is_the_servers(story, tmp_path):
    (shown,) = re.findall(r'`(\{"error": .*?\})`', README)
    body = json.loads(re.search(r"curl .*?-d '(.*?)'\n", README, re.S)[1])
    body["instances"][0]["body_mass_g"] = "heavy"
    with serving(story.models, tmp_path / "log") as server:
        answer = httpx.post(f"{server.url}/predict", json=body)
    assert (answer.status_code, answer.json()) == (400, json.loads(shown))


@pytest.mark.parametrize("command", sorted(set(re.findall(r"(?:`|\$ )foldserve ([a-z]+)", README))))
def test_every_command_of_the_server_exists(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        foldserve([command, "--help"])
    assert stopped.value.code == 0
    assert command in capsys.readouterr().out


@pytest.mark.parametrize("command", sorted(set(re.findall(r"(?:`|\$ )foldserve-train ([a-z]+)", README))))
def test_every_command_of_the_trainer_exists(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        foldserve_train([command, "--help"])
    assert stopped.value.code == 0
    assert command in capsys.readouterr().out


def test_every_file_that_it_links_to_exists():
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_file_that_checks_a_promise_exists():
    named = re.findall(r"\b((?:tests|benchmarks)/[\w/]+(?:\.py|/))", README)
    assert {"benchmarks/first_use.py", "tests/training/fold/test_fold.py"} <= set(named)
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_its_figures_are_those_of_the_benchmarks_and_no_missed_target_is_left_out():
    """README.md and benchmarks/README.md give the same target, median and verdict for each benchmark."""
    claimed = {
        (target, measured, verdict)
        for target, measured, verdict, check in re.findall(
            r"^\| [^|]+ \| ([^|]+) \| ([^|]+) \| (met|missed) \| `(make [^|`]+)` \|$", README, re.M
        )
    }
    rows = re.findall(r"^\| [^|]+\| ([\d,.]+)[^|]*\| ([≥≤<>] [\d.]+) +\| (met|missed) +\|", BENCHMARKS, re.M)
    measured = {(target, figure, verdict) for figure, target, verdict in rows}
    assert len(claimed) > 15
    assert claimed <= measured
    assert {row for row in measured if row[2] == "missed"} <= claimed


def _flags(command, capsys):
    with pytest.raises(SystemExit):
        foldserve_train([command, "--help"])
    lines = re.findall(r"^  (?:-h, )?(--[a-z-]+)(?:, (--[a-z-]+))?", capsys.readouterr().out, re.M)
    return {flag for line in lines for flag in line if flag}


def test_the_page_on_training_names_every_flag_of_fit_and_no_flag_that_does_not_exist(capsys):
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    # Flags of other programs: a benchmark, torchrun, curl.
    page = re.sub(r"<!-- ablation -->.*<!-- /ablation -->|torchrun --\S+|curl .*?\n", "", page, flags=re.S)
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", page))
    fit, diagnose = _flags("fit", capsys), _flags("diagnose", capsys)
    assert {"--target", "--no-batch-norm", "--help"} <= fit
    assert {flag for flag in fit if not flag.startswith("--no-")} <= named  # the page need not show the flags --no-*
    assert named <= fit | diagnose
