"""A champion's life: first, replaced on evidence, defended, taken back; and a server that follows it under load."""

import base64
import http.client
import json
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from servers import server

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("champion")]

COMMON = [
    *("--backbone", "mobilenet_v3_small", "--weights", "starter", "--image-size", "32", "--batch-size", "16"),
    *("--model", "shapes", "--trials", "1", "--set", "data.workers=1", "--set", "train.device=cpu"),
    # A poor model that names one class always has all of it right: on twenty test images that is a matter of luck.
    *("--set", "promotion.max_recall_loss=1", "--set", "promotion.exports=[]", "--json"),
    *("--set", "tracking.report=false", "--set", "tracking.observe=false"),
]
"""Their single trial is the linear probe."""


class Client:
    """Sends the same photograph again and again, and keeps what came back."""

    def __init__(self, port: int, image: bytes) -> None:
        self.statuses: list[int] = []
        self.seen: list[str] = []
        self._port, self._image = port, image
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send)
        self._thread.start()

    def wait_for(self, version: str) -> None:
        """Until an answer comes from that version."""
        with self._changed:
            assert self._changed.wait_for(lambda: version in self.seen[-1:], timeout=120), self.seen

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)

    def _send(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while not self._stop.wait(0.02):  # without it, the server would take a core from the searches beside it
            connection.request("POST", "/predict", self._image, {"Content-Type": "image/png"})
            response = connection.getresponse()
            answer = json.loads(response.read())
            with self._changed:
                self.statuses.append(response.status)
                if answer.get("version") not in self.seen[-1:]:
                    self.seen.append(str(answer.get("version")))
                self._changed.notify_all()
        connection.close()


def status_of_a_request_in_flight_when(port: int, image: bytes, act: Callable[[], None]) -> int:
    """Send a request of as many images as one may have, act while the server computes it, and wait for its answer."""
    body = json.dumps({"images": [base64.b64encode(image).decode()] * 256}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
    inside = 0.0
    while not inside:
        watching = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        watching.request("GET", "/metrics")
        text = watching.getresponse().read().decode()
        watching.close()
        inside = float(re.findall(r"^thawline_images_inside (.*)$", text, re.MULTILINE)[0])
    act()
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status


def mixed(data: Path, folder: Path) -> Path:
    """The same pictures, each in the folder of a class that its number decides: there is nothing to learn."""
    classes = sorted(path.name for path in data.iterdir() if path.is_dir())
    for number, file in enumerate(sorted(data.glob("*/*.png"))):
        place = folder / classes[number % len(classes)]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    return folder


@pytest.mark.timeout(1500)  # ten commands, three of which are searches
def test_a_better_model_replaces_the_champion_under_load_an_equal_one_does_not_and_rollback_undoes_it(
    tmp_path: Path,
    thawline: Callable[..., Any],
    forked: Callable[..., Any],
    environment_of: Callable[[Path], dict[str, str]],
    prepared: Callable[[Path], Path],
    prefect: dict[str, str],
    draw_pictures: Callable[..., Path],
) -> None:
    home, data = prepared(tmp_path / "home"), draw_pictures(tmp_path / "shapes", count=40)
    first = forked("search", mixed(data, tmp_path / "mixed"), *COMMON, "--study", "poor", home=home, **prefect).json
    assert (first["version"], first["decision"], first["champion_version"]) == ("1", "hold", None)
    assert "does not beat the majority class beyond chance" in first["reason"]
    assert first["report"] is None
    assert not (home / "studies" / "poor" / "report").exists()
    command = re.findall("`thawline (.*) --reason TEXT`", first["reason"])[0].split()
    forced = forked(*command, "--reason", "something must be served", home=home, **prefect)
    assert forced.out.splitlines()[0] == "shapes version 1 is now the champion, by force: something must be served"

    image = (data / "circle" / "circle-00.png").read_bytes()
    with server("shapes", environment_of(home)) as (port, process):
        client = Client(port, image)
        try:
            client.wait_for("1")
            second = forked("search", data, *COMMON, "--study", "good", home=home, **prefect).json
            assert (second["version"], second["decision"]) == ("2", "promote"), second["reason"]
            assert "the challenger is better: accuracy" in second["reason"]
            client.wait_for("2")

            third = forked("search", data, *COMMON, "--study", "good-again", home=home, **prefect).json
            assert (third["version"], third["decision"], third["champion_version"]) == ("3", "hold", "2")
            assert "gain +0.0000" in third["reason"]
            judged = forked("promote", "shapes", "--json", home=home, **prefect)
            assert (judged.code, judged.json["outcome"], judged.json["version"]) == (1, "hold", "3")

            back = thawline("rollback", "shapes", home=home)
            assert back.code == 0, back.err
            assert "version 1 is the champion again, in place of version 2" in back.out
            client.wait_for("1")
        finally:
            client.stop()
        assert set(client.statuses) == {200}
        assert client.seen == ["1", "2", "1"]
        assert status_of_a_request_in_flight_when(port, image, process.terminate) == 200
        assert process.wait(60) == 143

    reigns = forked("history", "shapes", "--json", home=home).json
    assert [reign["version"] for reign in reigns] == ["1", "2", "1"]
    assert [reign["until"] for reign in reigns] == [reigns[1]["since"], reigns[2]["since"], None]
    assert reigns[0]["reason"] == "first champion, by force: something must be served"
    assert second["reason"] in reigns[1]["reason"]
    assert reigns[2]["reason"] == "rolled back from version 2"
    table = forked("history", "shapes", home=home)
    assert "Champions of shapes" in table.out

    scored = thawline("score", "shapes/2", data / "circle", "--out", tmp_path / "out.parquet", home=home, **prefect)
    assert scored.code == 0, scored.err
    assert "40 images scored by shapes version 2" in scored.out


def test_what_cannot_be_served_is_reported_at_once(
    tmp_path: Path, prepared: Callable[[Path], Path], forked: Callable[..., Any]
) -> None:
    home = prepared(tmp_path / "home")
    short = tmp_path / "token"
    short.write_text("abc")
    for arguments, sentence in (
        (("serve", "nothing"), "No model 'nothing'"),
        (("serve", "a b"), "NAME, NAME@ALIAS or NAME/VERSION"),
        (("serve", "nothing", "--token-file", short), "has 3 characters, but needs at least 16"),
        (("serve", "nothing", "--host", "203.0.113.1"), "Cannot listen on 203.0.113.1:8000"),
        (("serve", "nothing", "--device", "toaster"), "toaster"),
        (("rollback", "nothing"), "No model 'nothing'"),
        (("history", "nothing"), "No model 'nothing'"),
        (("promote", "nothing", "--reason", "x"), "--reason needs --force"),
        (("promote", "nothing", "--force"), "No model 'nothing'"),
    ):
        ended = forked(*arguments, home=home)
        assert ended.code == 2, (arguments, ended.out, ended.err)
        assert sentence in ended.err, (arguments, ended.err)
        assert "Traceback" not in ended.err
