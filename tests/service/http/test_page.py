"""Tests the page at / over HTTP: its headers, its cache and its files. Also tests the report of a version."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.service.support import Served, serving, write_square_root

BROWSER = {"Accept": "text/html,application/xhtml+xml"}


@pytest.fixture(scope="module")
def served(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    models = tmp_path_factory.mktemp("page")
    (models / "digits").symlink_to(trained / "digits")
    write_square_root(models)
    with serving(models, models / "log") as server:
        yield server


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url) as client:
        yield client


def parts(page: str) -> list[str]:
    return re.findall(r'(?:src|href)="(page/[^"]+)"', page)


def test_a_browser_gets_a_page_that_loads_only_files_of_this_server(served: Served, client: httpx.Client) -> None:
    assert f", a page on {served.url}/, " in served.announcement
    page = client.get("/", headers=BROWSER)
    assert page.status_code == 200
    policy = dict(rule.split(" ", 1) for rule in page.headers["content-security-policy"].split("; "))
    assert (policy["default-src"], policy["script-src"], policy["style-src"]) == ("'none'", "'self'", "'self'")
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=|(?:src|href)=\"(?:https?:)?//", page.text)
    assert len(parts(page.text)) == 3
    for part in parts(page.text):
        assert client.get(f"/{part}").status_code == 200


def test_every_module_that_a_module_imports_exists(client: httpx.Client) -> None:
    (start,) = (part for part in parts(client.get("/", headers=BROWSER).text) if part.endswith("app.js"))
    folder = start.rpartition("/")[0]
    found, left = set(), {"app.js"}
    while left:
        name = left.pop()
        answer = client.get(f"/{folder}/{name}")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/javascript; charset=utf-8")
        found.add(name)
        left |= set(re.findall(r'from "\./([^"]+)"', answer.text)) - found
    assert len(found) > 5


def test_a_file_is_kept_for_ever_and_the_page_is_asked_for_again(client: httpx.Client) -> None:
    page = client.get("/", headers=BROWSER)
    assert page.headers["cache-control"] == "no-cache"
    file = client.get(f"/{parts(page.text)[1]}")
    assert "immutable" in file.headers["cache-control"]
    for answer, headers in ((page, BROWSER), (file, {})):
        again = client.get(answer.request.url, headers={**headers, "If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


def test_a_file_is_sent_compressed_to_a_client_that_accepts_it(client: httpx.Client) -> None:
    path = f"/{parts(client.get('/', headers=BROWSER).text)[1]}"
    plain = client.get(path, headers={"Accept-Encoding": "identity"})
    small = client.get(path, headers={"Accept-Encoding": "gzip, br"})
    assert "content-encoding" not in plain.headers
    assert small.headers["content-encoding"] == "gzip"
    assert plain.content == small.content
    assert int(small.headers["content-length"]) < len(plain.content) / 2


@pytest.mark.parametrize("path", ["/page/0/app.js", "/page/{}/index.html", "/page/{}/..%2fdocs.js", "/page/{}/none.js"])
def test_another_file_is_not_found(path: str, client: httpx.Client) -> None:
    folder = parts(client.get("/", headers=BROWSER).text)[0].split("/")[1]
    assert client.get(path.format(folder)).status_code == 404


def test_without_the_page_a_browser_is_led_to_the_documentation(trained: Path, tmp_path: Path) -> None:
    with serving(trained, tmp_path / "log", "--no-page") as server:
        answer = httpx.get(server.url, headers=BROWSER)
        assert (answer.status_code, answer.headers["location"]) == (307, "docs")
        assert "page" not in server.announcement


def test_a_report_is_shown_in_a_sandbox(client: httpx.Client, trained: Path) -> None:
    answer = client.get("/v1/models/digits/versions/1/report")
    assert answer.text == (trained / "digits" / "1" / "report.html").read_text()
    assert answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"].split("; ")
    assert policy[:2] == ["sandbox", "default-src 'none'"]
    assert not any(rule.startswith("script-src") for rule in policy)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("roots/versions/1", "this version has no report"),
        ("digits/versions/7", "unknown version of this model"),
        ("none/versions/1", "unknown model"),
    ],
)
def test_a_missing_report_is_not_found(path: str, text: str, client: httpx.Client) -> None:
    answer = client.get(f"/v1/models/{path}/report")
    assert (answer.status_code, answer.json()) == (404, {"error": text})
