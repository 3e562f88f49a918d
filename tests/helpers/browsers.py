"""A real browser for tests of pages, with optional screenshots."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

__all__ = ["Browser", "needs_browser", "open_browser"]

_CHROMIUM, _DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

needs_browser = pytest.mark.skipif(
    not (_CHROMIUM and _DRIVER), reason="needs Debian's packages chromium and chromium-driver"
)


_PATIENCE = 240.0
"""Seconds for a page to appear, with software rendering on a busy machine."""


class Browser:
    """Headless Chromium."""

    def __init__(self, driver: Any, pictures: Path | None) -> None:
        self.driver = driver
        self._pictures = pictures

    def open(self, address: str) -> None:
        """Load a page, even if only the part after ``#`` differs from the open page."""
        self.driver.get("about:blank")
        self.driver.get(address)

    def wait(self, holds: Callable[[Any], Any], seconds: float = _PATIENCE) -> Any:
        """Wait until a condition holds; a failing test shows the page's text."""
        try:
            return WebDriverWait(self.driver, seconds, ignored_exceptions=_PASSING).until(holds)
        except Exception:
            self.keep("in-vain")
            pytest.fail(f"waited in vain; the page is\n{self.text[:3000]}")

    def wait_for_text(self, *texts: str, seconds: float = _PATIENCE) -> str:
        """Wait until the page shows all of these texts; returns all its text."""
        self.wait(lambda _: all(text in self.text for text in texts), seconds)
        return self.text

    @property
    def text(self) -> str:
        """The visible text of the page in one line, including web components and its own frames."""
        return " ".join(str(self.driver.execute_script(_ALL_TEXT)).split())

    def find(self, selector: str) -> list[Any]:
        """Elements by CSS selector."""
        return list(self.driver.find_elements(By.CSS_SELECTOR, selector))

    def click_text(self, text: str, *, within: str = "*") -> None:
        """Click the element with exactly this text."""
        quoted = f'"{text}"'
        path = f"//{within}[normalize-space(.)={quoted} and not(.//*[normalize-space(.)={quoted}])]"
        self.wait(lambda page: page.find_elements(By.XPATH, path))[0].click()

    def keep(self, name: str) -> Path | None:
        """Take a screenshot, if screenshots are kept."""
        if self._pictures is None:
            return None
        path = self._pictures / f"{re.sub(r'[^a-z0-9-]+', '-', name.lower())}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(path))
        return path

    def resize(self, width: int, height: int) -> None:
        """Set the size of the page, even as narrow as a phone."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
        )


@contextmanager
def open_browser(
    profile: Path, pictures: Path | None = None, *, width: int = 1400, height: int = 1000
) -> Iterator[Browser]:
    """Start it with an empty profile, and end it."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(_CHROMIUM)
    quiet = ("background-networking", "component-update", "sync", "quic", "gpu")
    for argument in ("headless", "no-sandbox", "no-first-run", *(f"disable-{name}" for name in quiet)):
        options.add_argument(f"--{argument}")
    # Software rendering: TensorBoard draws meshes and projections with WebGL, even without a GPU.
    for argument in ("use-gl=angle", "use-angle=swiftshader", "enable-unsafe-swiftshader", "ignore-gpu-blocklist"):
        options.add_argument(f"--{argument}")
    options.add_argument(f"--user-data-dir={profile}")
    options.add_argument(f"--window-size={width},{height}")
    driver = webdriver.Chrome(options, Service(_DRIVER))
    try:
        yield Browser(driver, pictures)
    finally:
        driver.quit()


_PASSING: tuple[type[Exception], ...] = (Exception,)
"""Errors while a page is being built, when elements may disappear."""

_ALL_TEXT = """
const texts = [];
const walk = (root) => {
  texts.push(root instanceof Document ? (root.body ? root.body.innerText : '') : root.textContent);
  for (const element of root.querySelectorAll('*')) {
    if (element.shadowRoot) walk(element.shadowRoot);
    if (element.tagName === 'IFRAME') { try { walk(element.contentDocument); } catch (error) { /* of elsewhere */ } }
  }
};
walk(document);
return texts.join('\\n');
"""
