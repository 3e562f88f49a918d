"""Pages of others, in the browser of somebody who reaches the server."""

import base64
import hashlib
import json
import re

import pytest
from live import StandIn, live, tiny

RED = base64.b64encode(tiny("red")).decode()


def test_a_name_that_is_not_the_servers_is_refused_on_every_path() -> None:
    with live(allowed_hosts=("models.example.org", "*.example.net")) as server:
        for path in ("/", "/health", "/ready", "/docs", "/openapi.json", "/metrics", "/v2", "/nothing"):
            answer = server.ask("GET", path, headers={"Host": f"evil.example.com:{server.port}"})
            assert answer.status == 421, path
            assert "does not accept requests to the host 'evil.example.com'; --allow-host" in answer.error
        assert server.post("/predict", {"image": RED}, {"Host": "evil.example.com"}).status == 421
        for host in ("localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]:8000", "models.example.org", "a.example.net"):
            assert server.ask("GET", "/health", headers={"Host": host}).status == 200, host
        for host in ("example.net", "xexample.net", "models.example.org.evil.com", "127.0.0.1.evil.com", "[::1"):
            assert server.ask("GET", "/health", headers={"Host": host}).status in (200, 421)
            assert (server.ask("GET", "/health", headers={"Host": host}).status == 200) == (host == "[::1"), host


def test_any_name_can_be_allowed() -> None:
    with live(allowed_hosts=("*",)) as server:
        assert server.ask("GET", "/health", headers={"Host": "evil.example.com"}).status == 200


def test_a_page_of_another_origin_cannot_make_the_server_work() -> None:
    with live(allowed_hosts=("models.example.org",)) as server:
        own = f"http://127.0.0.1:{server.port}"
        for origin in ("http://evil.example.com", "http://127.0.0.1:1", "null", "", "http://[", "file://"):
            refused = server.post("/predict", {"image": RED}, {"Origin": origin})
            assert refused.status == 403, origin
            assert "Access-Control-Allow-Origin" not in refused.headers
        assert server.model.computed == 0
        for origin in (own, "https://models.example.org"):
            assert server.post("/predict", {"image": RED}, {"Origin": origin}).status == 200, origin


def test_no_page_of_others_can_frame_or_sniff_an_answer() -> None:
    with live() as server:
        for path in ("/", "/health", "/docs", "/nothing"):
            headers = server.ask("GET", path).headers
            assert (headers["x-frame-options"], headers["x-content-type-options"]) == ("DENY", "nosniff"), path
        refused = server.ask("GET", "/health", headers={"Host": "evil.example.com"})
        assert refused.headers["x-frame-options"] == "DENY"


def test_the_page_runs_no_script_but_its_own() -> None:
    with live() as server:
        page = server.ask("GET", "/")
        policy = page.headers["content-security-policy"]
        for element in ("script", "style"):
            (content,) = re.findall(f"<{element}>(.*?)</{element}>".encode(), page.body, re.DOTALL)
            digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
            assert f"{element}-src 'sha256-{digest}'" in policy
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy


@pytest.mark.parametrize("top_k", [1, 3])
def test_classes_that_are_whole_numbers_keep_their_order(top_k: int) -> None:
    with live(model=StandIn(classes=("10", "2", "1"))) as server:
        answer = server.post(f"/predict?top_k={top_k}", {"image": base64.b64encode(tiny("green")).decode()})
        (prediction,) = json.loads(answer.body)["predictions"]
        assert [each["label"] for each in prediction["top"]] == ["2", "10", "1"][:top_k]
        assert prediction["top"][0]["probability"] == prediction["probability"]
        assert {each["label"]: each["probability"] for each in prediction["top"]} == prediction["probabilities"]
