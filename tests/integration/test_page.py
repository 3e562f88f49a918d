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
    registry, version = MlflowRegistry(store), register(store, make_package(tmp_path / "package"))
    registry.set_tags("birds", version, {"test/accuracy": "0.8125", "thawline.tested_on": "48 test images"})
    registry.set_alias("birds", "champion", version)
    (tmp_path / "red.png").write_bytes(picture("red"))
    (tmp_path / "broken.png").write_bytes(picture("red")[:60])
    with (
        forked_server("birds", environment_of(store.home), first_process, tmp_path) as port,
        open_browser(tmp_path / "browser", width=900) as browser,
    ):
        browser.open(f"http://127.0.0.1:{port}/")
        browser.wait_for_text("birds, version 1", "Accuracy 0.813 on 48 test images", "3 classes")
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
        assert [each.text for each in browser.find(".unseen")] == ["broken.png"], (
            "its name in place of a broken picture"
        )


def test_several_images_stand_in_the_order_chosen_and_what_is_dropped_beside_does_not_replace_the_page(
    store: MlflowStore, tmp_path: Path, environment_of: Callable[[Path], dict[str, str]], first_process: Forks
) -> None:
    MlflowRegistry(store).set_alias("birds", "champion", register(store, make_package(tmp_path / "package")))
    files = [tmp_path / f"{colour}.png" for colour in ("green", "red", "blue")]
    for file in files:
        file.write_bytes(picture(file.stem))
    with (
        forked_server("birds", environment_of(store.home), first_process, tmp_path) as port,
        open_browser(tmp_path / "browser", width=900) as browser,
    ):
        browser.open(f"http://127.0.0.1:{port}/")
        browser.wait_for_text("birds, version 1", "Its accuracy has not been measured")
        assert browser.driver.title == "birds, version 1"
        browser.find("input[type=file]")[0].send_keys("\n".join(map(str, files)))
        browser.wait(lambda _: [each.text for each in browser.find("h2")] == ["green", "red", "blue"])
        assert [each.get_attribute("alt") for each in browser.find("article img")] == [file.name for file in files]
        assert browser.driver.execute_script(_DROP_BESIDE) == [True, True]


_DROP_BESIDE = """
return ["dragover", "drop"].map(kind => {
  const event = new DragEvent(kind, {bubbles: true, cancelable: true, dataTransfer: new DataTransfer()});
  document.body.dispatchEvent(event);
  return event.defaultPrevented;
});
"""
"""Whether the browser is kept from opening a file that is dropped on the page's margin."""
