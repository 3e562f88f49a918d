"""`thawline retrain`: trains, skips, tells, and is alone."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from servers import ask_prefect

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("retrain"), pytest.mark.timeout(1200)]

RECIPE: dict[str, Any] = {
    "data": {"workers": 1},
    "backbone": {"name": "mobilenet_v3_small", "weights": "starter", "image_size": 32},
    "train": {"epochs": 1, "batch_size": 16, "device": "cpu"},
    "study": {"trials": 2},
    "space": {"freeze_depth": [4, 4], "learning_rate": [0.004, 0.004]},
    "promotion": {"model": "figures", "exports": []},
    "tracking": {"tensorboard": False, "system_metrics": False, "report": False, "observe": False},
}
BLOCK = """
import sys
from prefect.blocks.notifications import CustomWebhookNotificationBlock
message = {"subject": "{{subject}}", "body": "{{body}}"}
CustomWebhookNotificationBlock(name="test", url=sys.argv[1], json_data=message).save("test")
"""
"""What a person does in Prefect's UI."""


@contextmanager
def receiver() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A service that is told things: its address, and what it was told."""
    told: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/hook", told
        finally:
            server.shutdown()
            thread.join()


def test_it_trains_what_changed_begins_with_the_champion_skips_what_did_not_and_tells_how_it_ended(
    tmp_path: Path,
    thawline: Callable[..., Any],
    forked: Callable[..., Any],
    prepared: Callable[[Path], Path],
    prefect: dict[str, str],
    draw_pictures: Callable[..., Path],
) -> None:
    home, data, more = (
        prepared(tmp_path / "home"),
        draw_pictures(tmp_path / "images"),
        draw_pictures(tmp_path / "more", 30),
    )
    recipe, wider = tmp_path / "recipe.yaml", tmp_path / "wider.yaml"
    told_by = {"retrain": {"notify": ["custom-webhook/test"]}}
    recipe.write_text(yaml.safe_dump(RECIPE | told_by))
    space = {"freeze_depth": [2, 6], "learning_rate": [0.0001, 0.01]}
    narrow = {"retrain": {**told_by["retrain"], "narrow": True}}
    wider.write_text(yaml.safe_dump(RECIPE | {"space": space} | narrow))
    with receiver() as (url, told):
        assert forked("-c", BLOCK, url, home=home, **prefect).code == 0

        first = thawline("retrain", data, "--recipe", recipe, "--json", home=home, **prefect).json
        assert (first["end"], first["search"]["version"], first["search"]["promoted"]) == ("promoted", "1", True)
        assert [message["subject"] for message in told] == ["figures version 1: promoted"]
        assert "Model: figures version 1, promoted to champion" in told[0]["body"]
        assert "/runs/flow-run/" in told[0]["body"]

        second = forked("retrain", data, "--recipe", recipe, home=home, **prefect)
        assert second.code == 0, second.err
        assert "figures: skipped: nothing has changed since figures version 1 (verdict: promote)" in second.out
        by_hand = {"deployment_id": {"is_null_": True}, "state": {"name": {"any_": ["Skipped"]}}}
        (run,) = ask_prefect(prefect, "flow_runs/filter", {"flow_runs": by_hand})
        assert run["state_type"] == "COMPLETED"
        assert run["state"]["message"].startswith("nothing has changed since figures version 1")
        assert len(told) == 1

        for file in more.glob("*/*-2[4-9].png"):
            shutil.copy(file, data / file.parent.name)
        slot = {"names": ["thawline-figures"], "slots": 1}
        ask_prefect(prefect, "v2/concurrency_limits/increment", slot)
        busy = forked("retrain", data, "--recipe", wider, "--json", home=home, **prefect).json
        assert busy["end"] == "skipped"
        assert "Prefect's global concurrency limit thawline-figures is taken" in busy["reason"]
        ask_prefect(prefect, "v2/concurrency_limits/decrement", slot)
        assert len(told) == 1

        third = forked("retrain", data, "--recipe", wider, "--json", home=home, **prefect).json
        assert third["search"]["version"] == "2"
        assert third["search"]["study"] != first["search"]["study"]
        assert first["search"]["best_trial"] == 0, "the linear probe, which every search begins with"
        assert {row["trial"]: row["policy"] for row in third["search"]["trials"]} == {0: "probe", 1: "static"}
        assert [message["subject"] for message in told[1:]] == [f"figures version 2: {third['end']}"]
        again = forked("retrain", data, "--recipe", wider, "--json", home=home, **prefect).json
        assert again["end"] == "skipped"  # although the champion, and so what is near it, may be another now

        for file in (data / "circle").iterdir():
            file.write_bytes(b"not an image")
        failed = forked("retrain", data, "--recipe", recipe, home=home, **prefect)
        assert failed.code == 2
        assert "30 of 90 images cannot be decoded" in failed.err
        assert "Traceback" not in failed.err
        assert [message["subject"] for message in told[2:]] == ["figures: failed"]
        assert "30 of 90 images cannot be decoded" in told[2]["body"]


def test_somebody_to_tell_who_does_not_exist_is_named_before_anything_is_trained(
    tmp_path: Path, forked: Callable[..., Any], prefect: dict[str, str], draw_pictures: Callable[..., Path]
) -> None:
    data, home = draw_pictures(tmp_path / "figures"), tmp_path / "home"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    for block, sentence in (
        ("team", "retrain.notify.0: must be a Prefect block as TYPE/NAME, such as slack-webhook/team"),
        ("slack-webhook/team", "retrain.notify: Prefect has no block 'slack-webhook/team'"),
    ):
        notify = f"retrain.notify=[{block}]"
        ended = forked("retrain", data, "--recipe", recipe, "--set", notify, home=home, **prefect)
        assert ended.code == 2
        assert sentence in ended.err
        assert "Traceback" not in ended.err
    assert not (home / "mlflow.db").exists()
