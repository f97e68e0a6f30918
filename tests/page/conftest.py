"""Fixtures: Chromium, and the server whose page Chromium opens.

`make test-page` runs these tests in the environment of Playwright, which has no foldserve. SERVER_PYTHON is a Python
that has foldserve. If Playwright or Chromium is missing, the tests are skipped, and the reason names the missing part.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]

# Requests to this machine must not go through a proxy.
os.environ["NO_PROXY"] = "127.0.0.1"


@dataclass(frozen=True)
class Server:
    url: str
    key: str
    process: subprocess.Popen[str]

    def write_next_version(self, model: str) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{model}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "written\n"


@contextmanager
def started(folder: Path, *flags: str) -> Iterator[Server]:
    """Start the server of served.py."""
    command = [os.environ.get("SERVER_PYTHON", sys.executable), "-m", "tests.page.served", str(folder), *flags]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        line = process.stdout.readline()
        assert line, "the server did not start"
        yield Server(**json.loads(line), process=process)
        process.stdin.close()
        assert process.wait(60) == 0
    assert "Traceback" not in (folder / "log").read_text()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started(tmp_path_factory.mktemp("served")) as server:
        yield server


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose clients need an API key."""
    with started(tmp_path_factory.mktemp("guarded"), "--keys") as server:
        yield server


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def opened(
    browser: Browser, server: Server, path: str = "/", *, key: str = "", allowed: tuple[int, ...] = (), **options: Any
) -> Iterator[Page]:
    """Open the page. At the end, check that the page wrote no error and sent every request to the server.

    key: the API key that the page asks for. allowed: the statuses of refusals that the test provokes. The browser
    writes an error for each refusal. options: the options of the browser's context.
    """
    context = browser.new_context(**options)
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on(
        "request",
        lambda request: (
            None if request.url.startswith((server.url, "data:", "blob:")) else problems.append(request.url)
        ),
    )
    page.goto(server.url + path)
    if key:
        page.get_by_label("API key", exact=True).fill(key)
        page.get_by_role("button", name="Use this key").click()
    page.wait_for_selector("main[aria-busy=false]")
    yield page
    context.close()
    assert [text for text in problems if not any(f"status of {status}" in text for status in allowed)] == []


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    with opened(browser, server) as page:
        yield page
