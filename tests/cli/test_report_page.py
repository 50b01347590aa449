"""The page of `report` in a real browser: it opens offline, draws everything, filters and sorts."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cli.records import rich_records, write_records

ENTER = "\ue007"
"""The key, as drivers are told of it."""
SAMPLES = ("order", "distribution", "clocks", "course")
SAID = ("Times with", "Tokens a second", "Ceilings:", "Build and run", "Shares of", "samples in")
"""What the drawings' text alternatives say, of each kind."""
ROWS = "#table tbody tr"
SHOWN = f"{ROWS}:not([hidden])"
DRAWINGS = """
    return [...document.querySelectorAll('figure:not([hidden]) .drawing')].map((drawing) => {
        const svg = drawing.querySelector('svg');
        const marks = svg ? svg.querySelectorAll('.role-mark path, .role-mark line, .role-mark text') : [];
        return [drawing.closest('figure').id || drawing.closest('figure').dataset.card, marks.length,
                svg ? svg.getBoundingClientRect().width : 0];
    });
"""
COLOURS = """
    const bar = document.querySelector('[data-card="answers-0"] .mark-rect path');
    const text = document.querySelector('[data-card="answers-0"] .role-axis-label text');
    return [bar, text, document.body].map((each) => {
        const style = getComputedStyle(each);
        return each === document.body ? style.backgroundColor : style.fill;
    });
"""
Browser = Any
"""A driver of selenium, which carries types of its own only in part."""


@pytest.fixture(scope="module")
def open_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Browser]]:
    """Return a function that starts Chromium in a theme; skips where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip(
            "no Chromium with its driver here: `apt-get install chromium chromium-driver` brings them"
        )
    started = []

    def start(theme: str) -> Browser:
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for switch in (
            "headless",
            "no-sandbox",
            "disable-gpu",
            "disable-background-networking",
            "no-first-run",
        ):
            options.add_argument(f"--{switch}")
        options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        started.append(browser)
        scheme = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
        return browser

    yield start
    for browser in started:
        browser.quit()


@pytest.fixture(scope="module")
def browser(open_browser: Callable[[str], Browser]) -> Browser:
    """Return one browser for this module's tests, in the light theme."""
    return open_browser("light")


@pytest.fixture(scope="module")
def page(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the address of a page with every kind of row."""
    folder = tmp_path_factory.mktemp("page")
    records = write_records(folder / "rows.jsonl", *rich_records())
    command = [sys.executable, "-m", "workbench", "report", str(records)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return (folder / "report.html").as_uri()


def visit(browser: Browser, page: str) -> None:
    """Open a page and wait until all is drawn."""
    browser.get_log("performance")
    browser.get(page)
    settle(browser)


def settle(browser: Browser, turn: int = 1) -> None:
    """Wait until the page is drawn for the `turn`-th time."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 30).until(
        lambda here: int(here.execute_script("return document.documentElement.dataset.drawn ?? 0")) >= turn
    )


def find(browser: Browser, selector: str) -> list[Any]:
    """Return the elements of a selector."""
    return list(browser.find_elements("css selector", selector))


def requests_of(browser: Browser) -> set[str]:
    """Return the addresses that the browser asked for since the last look."""
    messages = [json.loads(each["message"])["message"] for each in browser.get_log("performance")]
    return {
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    }


def test_page_opens_from_a_file_without_a_request_or_a_complaint(browser: Browser, page: str) -> None:
    visit(browser, page)
    asked = {address for address in requests_of(browser) if not address.startswith("data:")}
    assert asked == {page}
    assert browser.get_log("browser") == []
    assert browser.title == "Which compiler is fastest? 10 rows"


def test_every_row_of_the_records_is_on_the_page_with_status_and_reason(browser: Browser, page: str) -> None:
    visit(browser, page)
    texts = [row.text for row in find(browser, ROWS)]
    newest = [row for row in rich_records() if not row.created.startswith("2025")]
    assert len(texts) == len(newest)
    for row in newest:
        assert any(row.name in text and row.phase in text and row.status in text for text in texts)
    (crashed,) = (text for text in texts if "third" in text)
    assert "</script><script>document.title = 'taken'</script>" in crashed
    assert sum("1 older record" in text for text in texts) == 1


def test_every_drawing_is_drawn_in_both_themes_and_says_what_it_shows(
    open_browser: Callable[[str], Browser], browser: Browser, page: str
) -> None:
    dark = open_browser("dark")
    for here in (browser, dark):
        visit(here, page)
        drawn = here.execute_script(DRAWINGS)
        kinds = {name.partition("-")[0] for name, *_ in drawn}
        assert kinds == {"answers", "pareto", "roofline", "build", "kernels", *SAMPLES}
        for name, marks, width in drawn:
            assert marks > 0, name
            assert width > 100, name
        for drawing in find(here, "figure:not([hidden]) .drawing"):
            assert drawing.aria_role in ("img", "image")
            assert any(word in drawing.accessible_name for word in SAID), drawing.accessible_name
    colours = [here.execute_script(COLOURS) for here in (browser, dark)]
    assert all(light != other for light, other in zip(*colours, strict=True))
    find(dark, "#theme")[0].click()
    assert dark.execute_script(COLOURS) == colours[0]
    assert find(dark, "#theme")[0].text == "Dark theme"


def choose(browser: Browser, name: str, value: str) -> None:
    """Choose a value of a labelled form control."""
    from selenium.webdriver.support.ui import Select

    (control,) = find(browser, f"select[name={name}], select#{name}")
    assert control.accessible_name.lower().startswith("row" if name == "pick" else name)
    Select(control).select_by_visible_text(value)


def test_filters_narrow_rows_drawings_and_samples_and_show_all_resets_them(
    browser: Browser, page: str
) -> None:
    visit(browser, page)
    cards = "figure[data-card]:not([hidden])"
    everything = len(find(browser, cards))
    choose(browser, "device", "NVIDIA H200, 700 W")
    settle(browser, 2)
    assert len(find(browser, SHOWN)) == 6
    assert find(browser, "#count")[0].text == "6 of 10 rows"
    assert len(find(browser, cards)) < everything
    choose(browser, "batch", "8")
    settle(browser, 3)
    assert {row.get_attribute("data-batch") for row in find(browser, SHOWN)} == {"8"}
    assert all("b8" in option.text for option in find(browser, "#pick option"))
    for name, value in (("model", "llama-3.2-1b"), ("phase", "decode"), ("dtype", "bfloat16")):
        choose(browser, name, value)
    assert len(find(browser, SHOWN)) == 2
    choose(browser, "phase", "prefill")
    assert len(find(browser, SHOWN)) == 0
    assert len(find(browser, cards)) == 0
    find(browser, "button[type=reset]")[0].click()
    settle(browser, 8)
    assert find(browser, "#count")[0].text == "10 of 10 rows"
    assert len(find(browser, cards)) == everything
    assert browser.get_log("browser") == []


def test_headings_sort_by_number_with_the_keyboard_and_say_so(browser: Browser, page: str) -> None:
    visit(browser, page)
    headings = {heading.text.split()[0]: heading for heading in find(browser, "#table thead th")}
    for name, key in (("time", ENTER), ("batch", " ")):
        heading = headings[name]
        for expected, descending in (("ascending", False), ("descending", True)):
            heading.find_element("css selector", "button").send_keys(key)
            assert heading.get_attribute("aria-sort") == expected
            place = list(headings).index(name)
            cells = [row.find_elements("css selector", "th, td")[place] for row in find(browser, ROWS)]
            values = [cell.get_attribute("data-value") for cell in cells]
            numbers = [float(value) for value in values if value]
            assert numbers == sorted(numbers, reverse=descending)
            assert values[len(numbers) :] == [""] * (len(values) - len(numbers))
    assert [name for name, heading in headings.items() if heading.get_attribute("aria-sort") != "none"] == [
        "batch"
    ]


def test_samples_and_clocks_of_a_chosen_row_are_drawn_with_their_data(browser: Browser, page: str) -> None:
    visit(browser, page)
    offered = [option.text for option in find(browser, "#pick option")]
    labels = {name: next(text for text in offered if name in text) for name in ("CPU", "H200")}
    choose(browser, "pick", labels["CPU"])
    assert "holds no clocks" in find(browser, "#samples-text")[0].text
    assert find(browser, "#clocks:not([hidden])") == []
    choose(browser, "pick", labels["H200"])
    assert "30, 30 samples in 2 processes" in find(browser, "#samples-text")[0].text
    (heading,) = find(browser, "#clocks:not([hidden]) h3")
    assert heading.text == "Clocks"
    find(browser, "#clocks summary")[0].send_keys(ENTER)
    assert [row.text for row in find(browser, "#clocks tbody tr")][:2] == [
        "1 SM 1500 1900 1980 1950 1900",
        "1 memory 3201 3201 3201 3201 3201",
    ]
    find(browser, "#course summary")[0].send_keys(ENTER)
    assert [row.text for row in find(browser, "#course tbody tr")][1:4] == [
        "1 0.5 1900 690",
        "1 1 1500 -",
        "2 0 1980 500",
    ]
    find(browser, "#order summary")[0].send_keys(ENTER)
    assert len(find(browser, "#order tbody tr")) == 60


def test_mark_under_the_pointer_says_its_numbers(browser: Browser, page: str) -> None:
    from selenium.webdriver import ActionChains

    visit(browser, page)
    assert find(browser, "#tip:not([hidden])") == []
    (bar, *_) = find(browser, "[data-card='answers-0'] .mark-rect path")
    (row, *_) = find(browser, "[data-card='answers-0'] tbody tr")
    ActionChains(browser).scroll_to_element(bar).move_to_element(bar).perform()
    said = find(browser, "#tip")[0].text
    assert said.startswith("backend: ")
    cells = [cell.get_attribute("textContent") for cell in row.find_elements("css selector", "td")]
    assert all(cell in said for cell in cells)
    ActionChains(browser).move_to_element(find(browser, "h1")[0]).perform()
    assert find(browser, "#tip:not([hidden])") == []


def test_page_fits_a_narrow_screen(browser: Browser, page: str) -> None:
    size = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    visit(browser, page)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
