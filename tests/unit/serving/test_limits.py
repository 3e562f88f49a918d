"""What one client may ask of a server on which others depend, each limit reached over a real socket."""

import base64
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from live import Live, StandIn, live, one_bit, tiny

from thawline.exceptions import ServingError
from thawline.serving import ServeOptions, serve

MANY = 100_000
RED = base64.b64encode(tiny("red")).decode()


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live() as found:
        yield found


def form(files: int, content: bytes, *, end: bool = True) -> tuple[bytes, dict[str, str]]:
    """A multipart form, and its header."""
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n%s\r\n' % content
    return part * files + b"--b--\r\n" * end, {"Content-Type": "multipart/form-data; boundary=b"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predict", {"images": [RED] * MANY}),
        ("/invocations", {"dataframe_records": [{"image": RED}] * MANY}),
        ("/invocations", {"dataframe_split": {"columns": ["image"], "data": [[RED]] * MANY}}),
        ("/invocations", {"inputs": {"image": [RED] * MANY}}),
        ("/invocations", {"instances": [{"image": RED}] * MANY}),
        ("/invocations", {"instances": [{"image": RED}] * 257}),
        ("/invocations", {"instances": [[]] * MANY}),
    ],
    ids=lambda each: each if isinstance(each, str) else "-".join(each),
)
def test_more_images_than_one_request_may_hold_are_413_before_any_is_looked_at(
    server: Live, path: str, body: object
) -> None:
    before = server.model.computed
    answer = server.post(path, body)
    assert answer.status == 413, answer.body
    assert re.search("too many values|257 images; this server accepts at most 256", answer.error), answer.error
    assert server.model.computed == before
    assert server.post("/predict", {"images": [RED] * 256}).status == 200


def test_a_table_in_csv_and_a_form_have_the_same_limit(server: Live) -> None:
    table = ("image\n" + f"{RED}\n" * MANY).encode()
    assert server.ask("POST", "/invocations", table, {"Content-Type": "text/csv"}).status == 413
    for hidden in (b'image\nx"' + b"," * MANY + b'x"\n', b'image"' + b"," * MANY + b'"\nx\n'):
        assert server.ask("POST", "/invocations", hidden, {"Content-Type": "text/csv"}).status == 413
    columns = b",".join([b"image"] * MANY) + b"\n"
    assert server.ask("POST", "/invocations", columns, {"Content-Type": "text/csv"}).status == 413
    assert server.ask("POST", "/predict", *form(257, tiny())).status == 413
    assert server.ask("POST", "/predict", *form(2, tiny())).status == 200


def test_a_request_that_is_too_large_is_told_so_however_many_wait() -> None:
    model, entered, go_on = StandIn(), threading.Event(), threading.Event()

    def wait(size: int) -> None:
        entered.set()
        assert go_on.wait(60)

    model.before_batch = wait
    with live(model=model, max_items=2, max_waiting=2) as server, ThreadPoolExecutor() as pool:
        first = pool.submit(server.post, "/predict", {"images": [RED] * 2})
        assert entered.wait(60)
        full, too_large = server.post("/predict", {"images": [RED]}), server.post("/predict", {"images": [RED] * 3})
        go_on.set()
        assert first.result().status == 200
    assert (full.status, full.headers["retry-after"]) == (503, "1")
    assert too_large.status == 413


def test_texts_with_many_commas_are_no_table_of_many_values(server: Live) -> None:
    answer = server.post("/invocations", {"inputs": [{"image": "," * 10_000 + '\\",[{'}]})
    assert answer.status == 400  # it is no image, but one value


def test_an_image_of_many_pixels_in_few_bytes_counts_by_its_pixels(server: Live) -> None:
    large = base64.b64encode(one_bit(8000, 8000)).decode()
    for path, body in (("/predict", {"images": [large] * 40}), ("/invocations", {"inputs": {"image": [large] * 40}})):
        answer = server.post(path, body)
        assert answer.status == 413, answer.body
        assert "2,560,000,000 pixels in total; this server accepts at most 200,000,000" in answer.error
    assert server.ask("POST", "/predict", *form(40, one_bit(8000, 8000))).status == 413


def test_a_small_request_waits_for_one_batch_of_a_large_one_and_is_answered_before_it() -> None:
    model, entered, small_is_sent = StandIn(), threading.Event(), threading.Event()
    sizes: list[int] = []

    def wait(size: int) -> None:
        sizes.append(size)
        entered.set()
        assert small_is_sent.wait(60)

    model.before_batch = wait
    with live(model=model, max_batch=8) as server, ThreadPoolExecutor() as pool:
        large = pool.submit(server.post, "/predict", {"images": [RED] * 200})
        assert entered.wait(60)
        small = pool.submit(server.post, "/predict", {"images": [RED]})
        while server.metric("thawline_images_inside") < 201:
            pass
        small_is_sent.set()
        assert small.result().status == 200
        done_before_large = not large.done()
        assert large.result().status == 200
    assert done_before_large
    assert sum(sizes) == 201


def test_decoding_takes_turns_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    model, entered, small_is_sent = StandIn(), threading.Event(), threading.Event()
    prepare, order, other = model.prepare, [], one_bit(9, 9)

    def watched(item: bytes) -> object:
        order.append(item)
        entered.set()
        assert small_is_sent.wait(60)
        return prepare(item)

    monkeypatch.setattr(model, "prepare", watched)
    with live(model=model) as server, ThreadPoolExecutor() as pool:
        large = pool.submit(server.post, "/predict", {"images": [RED] * 100})
        assert entered.wait(60)
        small = pool.submit(server.ask, "POST", "/predict", other, {"Content-Type": "image/png"})
        while server.metric("thawline_images_inside") < 101:
            pass
        small_is_sent.set()
        assert (small.result().status, large.result().status) == (200, 200)
    assert order.index(other) <= 2


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ({"max_items": 10, "max_waiting": 9}, "--max-waiting 9 is smaller than --max-items 10"),
        ({"max_body_mb": 10.0, "max_bodies_mb": 9.5}, "--max-bodies 9.5 MB is smaller than --max-body 10 MB"),
    ],
)
def test_limits_that_contradict_each_other_are_refused_before_a_model_is_loaded(
    tmp_path: Path, limits: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ServingError, match=re.escape(sentence)):
        serve(ServeOptions(model="birds", tracking_uri=None, home=tmp_path, **limits))


def test_processes_are_told_every_option(tmp_path: Path) -> None:
    options = ServeOptions(
        model="birds", tracking_uri=None, home=tmp_path, allowed_hosts=("a", "*.b"), max_items=3, client_seconds=1.5
    )
    assert ServeOptions.from_json(options.to_json()) == options
