"""Tests the page at / in Chromium, with a mouse, a finger, a keyboard and a screen reader."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="Playwright is not installed: run make test-page")

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.page.conftest import Server, opened

# The cells (row, column) of the digit 3, in the order in which a pen draws them.
THREE = [(1, 2), (1, 3), (1, 4), (1, 5), (2, 5), (3, 4), (3, 3), (4, 5), (5, 5), (6, 5), (6, 4), (6, 3), (6, 2)]
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}

expect.set_options(timeout=30_000)  # this limit turns a hang into a failure, even on a slow machine


def draw(page: Page, cells: list[tuple[int, int]]) -> None:
    box = page.locator(".pixels").bounding_box()
    assert box
    size = box["width"] / 8
    points = [(box["x"] + (column + 0.5) * size, box["y"] + (row + 0.5) * size) for row, column in cells]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=3)
    page.mouse.up()


def choose(page: Page, model: str) -> None:
    """Choose a model, and wait until the page shows it."""
    page.select_option("#model", model)
    expect(page.locator("main[aria-busy=false]")).to_have_attribute("data-shown", re.compile(rf" {model} \d"))


def score(page: Page, table: str) -> None:
    page.get_by_label("Paste a CSV").fill(table)
    page.get_by_role("button", name="Score", exact=True).click()


# --- try it -----------------------------------------------------------------------------------------------------------


def test_a_drawn_three_is_a_three(page: Page) -> None:
    draw(page, THREE)
    expect(page.locator(".headline")).to_have_text(re.compile(r": 3, \d"))
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_role("gridcell").nth(10)).to_have_attribute("aria-label", "row 2, column 3: 0 percent")


def test_a_finger_draws_on_a_phone_that_shows_the_page_without_scrolling_sideways(
    browser: Browser, server: Server
) -> None:
    with opened(browser, server, **PHONE) as page:
        page.locator(".pixels").tap()
        expect(page.get_by_role("gridcell").nth(27)).to_have_attribute("aria-label", re.compile("[1-9]"))
        for part in ("try", "table", "models", "live"):
            page.goto(f"{server.url}/#{part}")
            expect(page.locator(f"#part-{part} h2").first).to_be_visible()
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_keyboard_alone_draws_and_reads_the_reasons(page: Page) -> None:
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    while not page.evaluate("document.activeElement.matches('.pixel')"):
        page.keyboard.press("Tab")
    place = (0, 0)
    for row, column in THREE:
        for key, steps in (("Down", row - place[0]), ("Right", column - place[1])):
            name = key if steps > 0 else {"Down": "Up", "Right": "Left"}[key]
            for _ in range(abs(steps)):
                page.keyboard.press(f"Arrow{name}")
        page.keyboard.press("Space")
        place = (row, column)
    expect(page.locator(".headline")).to_have_text(re.compile(r": 3, \d"))
    while not page.evaluate("document.activeElement.matches('.why summary')"):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator(".why .bars .line").first).to_be_visible()


def test_a_form_has_a_control_for_each_kind_and_marks_what_training_has_not_seen(page: Page) -> None:
    choose(page, "mixed")
    expect(page.locator(".headline")).to_have_text(re.compile("maybe|no|yes"))
    before = page.locator(".answer").inner_text()
    page.get_by_label("town", exact=True).select_option(label="é")
    page.get_by_label("member", exact=True).select_option("false")
    expect(page.locator(".answer")).not_to_have_text(before)
    page.get_by_label("age", exact=True).fill("7")
    expect(page.locator("#feature-0-note")).to_have_text("above the training range, 0 to 1")
    page.get_by_label("missing income").check()
    expect(page.get_by_label("income", exact=True)).to_be_disabled()
    with page.expect_response(re.compile(":predict")) as sent:
        page.get_by_label("age, slider").press("ArrowLeft")
    row = sent.value.request.post_data_json["instances"][0]
    assert row[1:4] == ["é", False, None]


def test_a_date_has_a_date_input_and_may_be_missing(page: Page) -> None:
    choose(page, "when")
    expect(page.get_by_label("day", exact=True)).to_have_value("2020-01-21")
    expect(page.locator(".headline")).to_have_text("Value: 10")
    page.get_by_label("day", exact=True).fill("2020-03-01")
    expect(page.locator(".headline")).to_have_text("Value: 30")
    page.get_by_label("missing day").check()
    expect(page.locator(".headline")).to_have_text("Value: 5")


def test_the_contributions_add_up_and_a_curve_shows_what_another_value_would_do(page: Page) -> None:
    choose(page, "mixed")
    page.get_by_text("Why this answer").click()
    expect(page.locator(".why .line")).to_have_count(7)
    text = page.locator(".why > .quiet").inner_text()
    total, offset = map(float, re.search(r" is (\S+) = (\S+) \(offset\)", text).groups())  # type: ignore[union-attr]
    parts = page.locator(".why .line .value").all_inner_texts()
    assert offset + sum(map(float, parts)) == pytest.approx(total, abs=0.05)
    page.get_by_label("Move").select_option(label="town")
    expect(page.locator(".why rect")).to_have_count(6)
    ticks = page.locator(".why .tick").all_text_contents()
    assert ticks == ["0 %", "50 %", "100 %", "Paris", "é", "", "1", "[18-25)", "l'eau"]
    page.get_by_label("Move").select_option(label="age")
    expect(page.locator(".why .tick").last).to_have_text("1")
    page.get_by_label("Explain").select_option(label="yes")
    expect(page.locator(".why > .quiet")).to_contain_text('The logit of "yes"')


def test_the_code_of_a_request_can_be_run(page: Page, tmp_path: Path) -> None:
    choose(page, "mixed")
    page.get_by_text("The code of this request").click()
    answer = page.locator(".headline").inner_text()
    expect(page.locator(".code code")).to_have_text(re.compile("^curl"))
    done = subprocess.run(
        ["/bin/sh", "-c", f"{page.locator('.code code').inner_text()} -s"], capture_output=True, check=True
    )
    assert json.loads(done.stdout)["predictions"][0] in answer
    page.get_by_label("Language").select_option("Python")
    program = tmp_path / "program.py"
    program.write_text(page.locator(".code code").inner_text())
    done = subprocess.run([sys.executable, program], capture_output=True, check=True)
    assert re.search(rb"'predictions': \['(.*?)'\]", done.stdout)[1].decode() in answer  # type: ignore[index]
    page.get_by_label("Language").select_option("tritonclient")
    compile(page.locator(".code code").inner_text(), "tritonclient", "exec")


def test_500_features_and_1000_classes_are_found_filled_in_and_answered(page: Page) -> None:
    choose(page, "wide")
    expect(page.locator(".field")).to_have_count(500)
    page.get_by_label("Find one of 500 features").fill("column 499")
    expect(page.locator(".field:visible")).to_have_count(1)
    page.get_by_label("column 499", exact=True).fill("0.75")
    expect(page.locator(".answer > .bars .line")).to_have_count(10)
    page.get_by_text("All 1000 classes").click()
    expect(page.locator(".answer details .line")).to_have_count(990)


# --- score a table ----------------------------------------------------------------------------------------------------

HEAD = "age,town,member,income,size,smokes,children"


def test_errors_of_a_table_name_their_line_and_column_and_the_other_rows_are_scored(page: Page) -> None:
    page.get_by_role("link", name="Score a table").click()
    choose(page, "mixed")
    bad = ["old,é,true,2,1,true,0", ",é,true,2,1,true,0", "1,é,perhaps,2,1,true,0", "1,é,true"]
    good = ['1,"l\'eau",true,,2.5,,many', "0.5,Oslo,no,3,40,true,-7"]
    score(page, "\n".join([HEAD, *bad, *good]))
    expect(page.locator(".errors li")).to_have_text(
        [
            "line 2, column age: is not a number",
            "line 3, column age: is empty, and training has seen no missing value",
            "line 4, column member: is neither true nor false",
            "line 5: has 3 cells, and the header has 7",
        ]
    )
    expect(page.get_by_role("status").first).to_contain_text("2 of 6 rows scored")
    expect(page.locator("tbody tr td.good")).to_have_count(2)


def test_an_error_of_the_server_names_the_line_and_column_too(browser: Browser, server: Server) -> None:
    with opened(browser, server, "/#table", allowed=(400,)) as page:
        choose(page, "mixed")
        score(page, f"{HEAD}\n1,é,true,2,1,true,0\n1e39,é,true,2,1,true,0\n")
        expect(page.locator(".errors li")).to_have_text("line 3, column age: is too large for float32")
        expect(page.locator("tbody tr td.good")).to_have_count(1)


def test_a_table_without_a_column_is_refused_with_its_name(page: Page) -> None:
    page.get_by_role("link", name="Score a table").click()
    choose(page, "mixed")
    score(page, "age,town\n1,é\n")
    expect(page.get_by_role("alert")).to_have_text(
        "The table lacks 5 columns of the model: member, income, size, smokes, children."
    )


def test_10000_rows_are_scored_and_downloaded(page: Page, tmp_path: Path) -> None:
    page.get_by_role("link", name="Score a table").click()
    choose(page, "mixed")
    file = tmp_path / "rows.csv"
    file.write_text("\n".join([HEAD, *(f"{i % 7},é,true,{i},1,true,0" for i in range(10_000))]))
    page.get_by_label("choose a file").set_input_files(file)
    expect(page.get_by_role("status").first).to_contain_text("10000 of 10000 rows scored")
    page.get_by_role("button", name="Next rows").click()
    expect(page.get_by_text("Rows 51 to 100 of 10000")).to_be_visible()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Download the scored table").click()
    lines = saved.value.path().read_text().splitlines()
    assert len(lines) == 10_001
    assert lines[0] == f"{HEAD},prediction,probability of no,probability of maybe,probability of yes"
    assert sum(map(float, lines[9_000].split(",")[-3:])) == pytest.approx(1, abs=1e-4)


# --- see it -----------------------------------------------------------------------------------------------------------


def test_the_certificate_is_proven_again_and_the_report_opens_in_a_sandbox(page: Page) -> None:
    page.get_by_role("link", name="Models").click()
    page.get_by_role("button", name="Prove it again now").click()
    expect(page.get_by_text("It holds: 160 outputs of 16 golden rows")).to_be_visible()
    expect(page.get_by_role("region", name="Folded layers")).to_contain_text("standardise")
    with page.expect_popup() as opening:
        page.get_by_role("link", name="Report of digits version 1").click()
    expect(opening.value.locator("h1")).to_be_visible()


SEND_SHIFTED = """(rows) => fetch("v1/models/digits:predict", { method: "POST",
  headers: { "Content-Type": "application/json", "X-Request-Id": "shifted" },
  body: JSON.stringify({ instances: Array(rows).fill(Array(64).fill(16)) }) })"""
SEND_LABELS = """(rows) => fetch("v1/models/digits/feedback", { method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify({ feedback: [{ request_id: "shifted", labels: Array(rows).fill(1) }] }) })"""


def test_shifted_rows_are_drawn_over_the_training_rows_and_labels_give_the_live_accuracy(page: Page) -> None:
    page.evaluate(SEND_SHIFTED, 1000)
    page.evaluate(SEND_LABELS, 1000)
    page.get_by_role("link", name="Models").click()
    card = page.locator("section[aria-label='Drift']")
    expect(card.locator("strong")).to_have_text("drift")
    expect(card.locator(".twin .steps")).to_have_count(12)
    card.get_by_role("button", name="Show all 64 features").click()
    expect(card.locator(".twin .steps")).to_have_count(64)
    expect(card.get_by_role("region", name="Live labels and test rows")).to_contain_text("accuracy")
    card.get_by_role("link", name="The same as a page").click()
    expect(page.get_by_role("heading", name="Drift of digits, version 1")).to_be_visible()
    expect(page.locator("svg")).to_have_count(64)
    assert Axe().run(page).response["violations"] == []


def test_live_figures_follow_the_requests(page: Page) -> None:
    page.get_by_role("link", name="Live").click()
    figure = page.locator("section[aria-label='Requests a second'] .figure")
    expect(figure).to_have_text("0")
    page.evaluate(
        """() => { const row = Array(64).fill(0);
        for (let i = 0; i < 20; i += 1) fetch("v1/models/digits:predict", { method: "POST",
          headers: { "Content-Type": "application/json" }, body: JSON.stringify({ instances: [row] }) }); }"""
    )
    expect(figure).to_have_text(re.compile("[1-9]"))


def test_a_key_is_asked_for_and_an_operator_changes_the_version_that_answers(browser: Browser, guarded: Server) -> None:
    with opened(browser, guarded, key=guarded.key, allowed=(401,)) as page:
        guarded.write_next_version("mixed")
        page.get_by_role("link", name="Models").click()
        card = page.get_by_role("region", name="Versions of mixed")
        # The server notices the new folder, and the page notices the new version.
        expect(card.get_by_text("2 (current)")).to_be_visible()
        card.get_by_role("button", name="rollback mixed version 1").click()
        expect(card.get_by_text("1 (current)")).to_be_visible()
        card.get_by_role("button", name="unload mixed version 2").click()
        expect(card.get_by_text("unloaded", exact=True)).to_be_visible()
        assert page.evaluate("Object.keys(localStorage).length + document.cookie.length") == 0


def test_a_version_that_goes_live_is_seen_and_compared_with_the_old_one(page: Page, server: Server) -> None:
    page.get_by_role("link", name="Models").click()
    choose(page, "when")
    server.write_next_version("when")
    expect(page.locator("#version")).to_have_value("2")
    expect(page.get_by_role("heading", name="Two versions")).to_be_visible()
    expect(page.locator("section[aria-label='Comparison']")).to_contain_text("The two versions differ in nothing")


# --- everybody --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation(scheme: str, browser: Browser, server: Server) -> None:
    with opened(browser, server, color_scheme=scheme) as page:
        for part, model in (
            ("try", "digits"),
            ("try", "mixed"),
            ("table", "mixed"),
            ("models", "mixed"),
            ("live", "mixed"),
        ):
            page.goto(f"{server.url}/#{part}")
            choose(page, model)
            expect(page.locator(f"#part-{part} h2").first).to_be_visible()
            if part == "try":
                expect(page.locator(".headline")).not_to_be_empty()
                page.get_by_text("Why this answer").click()
                expect(page.locator(".why .line").first).to_be_visible()
            if part == "table":
                page.get_by_role("button", name="Fill in an example").click()
                page.get_by_role("button", name="Score", exact=True).click()
                expect(page.locator("tbody tr").first).to_be_visible()
            expect(page.locator("main").get_by_text("null", exact=True)).to_have_count(0)
            found = Axe().run(page).response["violations"]
            assert [(each["id"], each["nodes"][0]["html"]) for each in found] == [], (part, model)


@pytest.mark.parametrize("served", ["server", "guarded"])
def test_the_documentation_of_the_api_shows_and_sends_a_request(
    served: str, browser: Browser, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(served)
    context = browser.new_context()
    page = context.new_page()
    page.on("dialog", lambda dialog: dialog.accept(server.key))  # the page asks for the API key
    page.goto(f"{server.url}/docs")
    page.locator(".opblock-summary-path", has_text="/predict").first.click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    expect(page.locator(".live-responses-table .response-col_status").last).to_contain_text("200")
    context.close()
