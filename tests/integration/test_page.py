"""The page to drop images on, in a real browser."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from colours import make_package, picture, register
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from servers import server

from thawline.registry import MlflowRegistry
from thawline.tracking import connect

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Debian's packages chromium and chromium-driver"),
]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    quiet = ("background-networking", "component-update", "sync", "quic", "gpu")
    for argument in ("headless", "no-sandbox", "no-first-run", *(f"disable-{name}" for name in quiet)):
        options.add_argument(f"--{argument}")
    options.add_argument(f"--user-data-dir={tmp_path / 'browser'}")
    options.add_argument("--window-size=900,1000")
    driver = webdriver.Chrome(options, Service(DRIVER))
    yield driver
    driver.quit()


def test_an_image_that_is_chosen_is_answered_and_a_bad_one_gets_its_reason(
    browser: Any, own_home: Path, tmp_path: Path, environment_of: Callable[[Path], dict[str, str]]
) -> None:
    store = connect(f"sqlite:///{own_home}/mlflow.db", home=own_home, experiment="thawline")
    MlflowRegistry(store).set_alias("birds", "champion", register(store, make_package(tmp_path / "package")))
    (tmp_path / "red.png").write_bytes(picture("red"))
    (tmp_path / "broken.png").write_bytes(picture("red")[:60])
    with server("birds", environment_of(own_home)) as (port, _):
        browser.get(f"http://127.0.0.1:{port}/")
        wait = WebDriverWait(browser, 30)
        wait.until(lambda page: page.find_element(By.ID, "served").text == "birds, version 1")
        chosen = browser.find_element(By.CSS_SELECTOR, "input[type=file]")
        chosen.send_keys(str(tmp_path / "red.png"))
        wait.until(lambda page: [each.text for each in page.find_elements(By.TAG_NAME, "h2")] == ["red"])
        rows = [row.text.split("\n") for row in browser.find_elements(By.CSS_SELECTOR, ".row")]
        assert rows[0][0] == "red"
        assert float(rows[0][1].removesuffix(" %")) > 99
        assert {row[0] for row in rows} == {"red", "green", "blue"}
        chosen.send_keys(str(tmp_path / "broken.png"))
        wait.until(lambda page: len(page.find_elements(By.CSS_SELECTOR, "h2.error")) == 1)
        assert browser.find_element(By.CSS_SELECTOR, "h2.error").text.startswith("broken.png cannot be read: ")
        browser.save_screenshot(str(tmp_path / "page.png"))
