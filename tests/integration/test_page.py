"""The page to drop images on, in a real browser."""

from collections.abc import Callable
from pathlib import Path

import pytest
from browsers import needs_browser, open_browser
from colours import make_package, picture, register
from commands import Forks
from servers import forked_server

from thawline.registry import MlflowRegistry
from thawline.tracking import MlflowStore

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("page"), needs_browser]


def test_an_image_that_is_chosen_is_answered_and_a_bad_one_gets_its_reason(
    store: MlflowStore, tmp_path: Path, environment_of: Callable[[Path], dict[str, str]], first_process: Forks
) -> None:
    MlflowRegistry(store).set_alias("birds", "champion", register(store, make_package(tmp_path / "package")))
    (tmp_path / "red.png").write_bytes(picture("red"))
    (tmp_path / "broken.png").write_bytes(picture("red")[:60])
    with (
        forked_server("birds", environment_of(store.home), first_process, tmp_path) as port,
        open_browser(tmp_path / "browser", width=900) as browser,
    ):
        browser.open(f"http://127.0.0.1:{port}/")
        browser.wait_for_text("birds, version 1")
        (chosen,) = browser.find("input[type=file]")
        chosen.send_keys(str(tmp_path / "red.png"))
        browser.wait(lambda _: [each.text for each in browser.find("h2")] == ["red"])
        rows = [row.text.split("\n") for row in browser.find(".row")]
        assert rows[0][0] == "red"
        assert float(rows[0][1].removesuffix(" %")) > 99
        assert {row[0] for row in rows} == {"red", "green", "blue"}
        chosen.send_keys(str(tmp_path / "broken.png"))
        browser.wait(lambda _: len(browser.find("h2.error")) == 1)
        assert browser.find("h2.error")[0].text.startswith("broken.png cannot be read: ")
