"""The viewer's page in headless Chromium: opened, clicked, scrolled through 10,000 paths.

pytest -m browser            # needs Chromium and its driver: apt-get install chromium
                             chromium-driver
"""

from __future__ import annotations

import shutil
import time

import pytest
from viewer_run import HOSTILE, write_run

from rea_rl.viewer import main

pytestmark = pytest.mark.browser

SECONDS = 0.5  # longest that a click may hold the page


@pytest.fixture(scope="module")
def driver():
    from selenium import webdriver

    # Named, or selenium asks the network for a driver first.
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    options = webdriver.ChromeOptions()
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--window-size=1500,950",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=service) as driver:
        yield driver


def open_run(driver, folder, **size):
    main([str(write_run(folder, **size))])
    driver.get((folder / "viewer.html").as_uri())
    return driver


@pytest.fixture(scope="module")
def page(driver, tmp_path_factory):
    return open_run(driver, tmp_path_factory.mktemp("small") / "run")


@pytest.fixture
def small(page, driver):
    driver.refresh()
    return driver


def find(driver, selector):
    return driver.find_elements("css selector", selector)


def choose(driver, control, value):
    from selenium.webdriver.support.select import Select

    Select(find(driver, f"#{control}")[0]).select_by_value(value)


def count(driver):
    return find(driver, "#count")[0].text


def test_opens_without_errors_and_shows_the_first_path(small):
    assert small.title == "Rollouts of run" and count(small) == "14 of 14 responses"
    assert [entry for entry in small.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert find(small, "#original .part")[0].text.splitlines() == ["P(Result) 0.10", HOSTILE]
    assert {mark.text.lower() for mark in find(small, "#original mark")} <= {
        "wait",
        "but",
        "check",
        "alternatively",
    }
    assert len(find(small, "#original .cut")) == len(find(small, "#revision .cut")) == 1
    assert len(find(small, "#curves svg")) == 3
    assert "advantage 0.500" in find(small, "#original .facts")[0].text


def test_paragraphs_are_shaded_by_probability(small):
    parts = find(small, "#original .part[data-p]")
    assert {part.get_attribute("data-p") for part in parts} == {"0.1", "0.9"}
    for part in parts:
        alpha = float(part.value_of_css_property("background-color").rstrip(")").rpartition(",")[2])
        assert alpha == pytest.approx(0.32 * float(part.get_attribute("data-p")), abs=0.005)


def test_a_click_shows_another_pair(small):
    find(small, "#list .row")[1].click()
    assert len(find(small, "#list .row.chosen")) == 1
    assert "train-0, step-0, sampled by policy-0-abc" == find(small, "#title")[0].text
    assert HOSTILE not in find(small, "#original")[0].text
    small.switch_to.active_element.send_keys("")  # the page still takes keys
    find(small, "#list")[0].send_keys("\ue015")  # arrow down
    assert "chosen" in find(small, "#list .row")[2].get_attribute("class")


def test_filters_and_orders(small):
    choose(small, "step", "step-0")
    assert count(small) == "6 of 14 responses"
    choose(small, "show", "wrong")  # seeds 0 and 4
    assert count(small) == "2 of 14 responses"
    choose(small, "show", "replaced")  # seeds 0 and 3
    assert count(small) == "2 of 14 responses"
    choose(small, "show", "all")
    choose(small, "sort", "longest")
    lengths = [
        int(row.find_elements("css selector", ".num")[0].text) for row in find(small, "#list .row")
    ]
    assert lengths == sorted(lengths, reverse=True)
    choose(small, "sort", "saved")
    saved = [
        int(row.find_elements("css selector", ".num")[1].text) for row in find(small, "#list .row")
    ]
    assert saved == sorted(saved, reverse=True) and saved != lengths
    find(small, "#problem")[0].send_keys("train-1")
    assert count(small) == "2 of 14 responses"
    choose(small, "step", "eval-2")
    assert count(small) == "0 of 14 responses"


def test_an_evaluation_says_that_there_is_no_revision(small):
    choose(small, "step", "eval-2")
    assert "sampled without revision" in find(small, "#revision")[0].text


def test_ten_thousand_paths_do_not_freeze(driver, tmp_path):
    begin = time.perf_counter()
    open_run(driver, tmp_path / "run", pairs_a_step=1000, steps=10)
    assert count(driver) == "10,002 of 10,002 responses"
    assert time.perf_counter() - begin < 60
    for control, value in (
        ("sort", "longest"),
        ("show", "wrong"),
        ("sort", "saved"),
        ("show", "all"),
        ("step", "step-9"),
    ):
        begin = time.perf_counter()
        choose(driver, control, value)
        assert count(driver).endswith("of 10,002 responses")
        assert time.perf_counter() - begin < SECONDS + 1  # the driver's own share included
    choose(driver, "step", "all")
    for position in (0.1, 0.5, 0.99):
        took = driver.execute_async_script(
            "const [share, done] = arguments, list = document.getElementById('list'), begin = "
            "performance.now();list.scrollTop = share * list.scrollHeight;requestAnimationFrame(() "
            "=> requestAnimationFrame(() => done(performance.now() - begin)));",
            position,
        )
        assert took < 1000 * SECONDS
        assert 0 < len(find(driver, "#list .row")) < 80
    assert len(find(driver, "#list .row.chosen")) == 0
    find(driver, "#list .row")[20].click()
    assert len(find(driver, "#original .part")) >= 3
