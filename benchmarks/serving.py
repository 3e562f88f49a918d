"""Requests per second: the packaged model in process, ``thawline serve``, and ``mlflow models serve``.

All three classify the same photographs with the same packaged model, on the same cores, in sequence in one run. Clients
are threads of a separate process that keep their connections and send one photograph after another.
"""

import argparse
import base64
import http.client
import json
import math
import multiprocessing
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import psutil
import torch

from thawline import backbones
from thawline.data import decode, resize_and_crop
from thawline.engines import EngineName
from thawline.exceptions import EngineError
from thawline.registry import MlflowRegistry, ModelName, log_packaged_model, package
from thawline.scoring import score_files
from thawline.serving.served import ServedModel
from thawline.tracking import MlflowStore, connect

SHARED = Path(os.environ.get("THAWLINE_TEST_DATA", Path(__file__).resolve().parents[2] / "shared"))
PROGRAMS = Path(sys.executable).parent
BATCH = 32
ENGINES = [name for name in get_args(EngineName) if name != "auto"]
TRIED = [name for name in ENGINES if name != "pytorch-compiled" or torch.cuda.is_available()]
"""Like ``auto``: compiling for a CPU takes minutes."""


@dataclass(frozen=True)
class Load:
    """The clients' measurements."""

    per_second: float
    p50: float
    """Milliseconds."""
    p99: float
    failed: int


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="resnet18", help="with random weights, for timing only")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=15, help="seconds of load per number of clients")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=TRIED, help="for process, score and serve")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8, 32])
    options = parser.parse_args()
    photographs = sorted((SHARED / "data" / "clothing" / "test").rglob("*.jpg"))[:200]
    if not photographs:
        sys.exit(f"There is no folder {SHARED}/data/clothing. Set THAWLINE_TEST_DATA to the folder of photographs.")
    images = [path.read_bytes() for path in photographs]
    with tempfile.TemporaryDirectory() as folder:
        store = connect(f"sqlite:///{folder}/mlflow.db", home=Path(folder), experiment="serving")
        registry = MlflowRegistry(store)
        for _ in range(2):
            version = register(store, options, images[0])
        registry.set_alias("clothing", "champion", "1")
        print(f"{platform.machine()}, {os.cpu_count()} cores; {vars(options)}; {len(images)} photographs of "
              f"{statistics.median(map(len, images)) / 1e3:.0f} kB\n")  # fmt: skip
        print("| | engine | clients | a second | of the engine's ceiling | p50 ms | p99 ms | failed | memory, GB |")
        print("|---|---|---|---|---|---|---|---|---|")
        ceilings = {}
        for engine in options.engines:
            try:
                ceilings[engine] = in_process(
                    registry, store, engine, photographs, images, options.seconds, Path(folder)
                )
            except EngineError as error:  # such as bf16 on a processor without it
                print(f"| not measured: {error} | {engine} | | | | | | | |", flush=True)
        for name, engine, command, path in (
            *(("thawline serve", engine, thawline_command(engine), "/predict") for engine in ceilings),
            ("mlflow models serve", "pytorch", mlflow_command(), "/invocations"),
        ):
            ceiling = ceilings.get(engine, math.nan)
            with server(command, store, Path(folder)) as (port, process):
                for clients in options.clients:
                    load = under_load(port, path, images, clients, options.seconds)
                    memory = sum(each.memory_info().rss for each in [process, *process.children(recursive=True)]) / 1e9
                    print(
                        f"| {name} | {engine} | {clients} | {load.per_second:.1f} | {load.per_second / ceiling:.2f} "
                        f"| {load.p50:.1f} | {load.p99:.1f} | {load.failed} | {memory:.2f} |",
                        flush=True,
                    )
                if name == "thawline serve" and engine == next(iter(ceilings)):
                    reload(port, registry, images, version, options.seconds)


def in_process(
    registry: MlflowRegistry,
    store: MlflowStore,
    engine: EngineName,
    photographs: Sequence[Path],
    images: Sequence[bytes],
    seconds: float,
    folder: Path,
) -> float:
    """Measure an engine without a server; prints its rows, and returns the ceiling in images per second."""
    model = ServedModel(registry.load(ModelName("clothing"), engine=engine))
    ceiling = in_process_rate(model, images, seconds)
    print(f"| in process, decoding beside batches of {BATCH} | {engine} | | {ceiling:.1f} | 1.00 | | | | |")
    alone = single_seconds(model, images)
    shares = f"{1 / alone:.1f} | {1 / alone / ceiling:.2f} | {1e3 * alone:.1f}"
    print(f"| in process, one image at a time | {engine} | | {shares} | | | |")
    rate = scoring_rate(store, photographs, folder, engine)
    print(f"| thawline score | {engine} | | {rate:.1f} | {rate / ceiling:.2f} | | | | |", flush=True)
    return ceiling


def reload(port: int, registry: MlflowRegistry, images: Sequence[bytes], version: str, seconds: float) -> None:
    """The same load with and without a change of champion in the middle."""
    usual = under_load(port, "/predict", images, 8, seconds)
    mover = threading.Timer(seconds / 3, registry.set_alias, ("clothing", "champion", version))
    mover.start()
    moved = under_load(port, "/predict", images, 8, seconds)
    mover.join()
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/ready")
    now = json.loads(connection.getresponse().read())["version"]
    connection.close()
    print(
        f"| thawline serve, champion moves (now version {now}) | | 8 | {moved.per_second:.1f} | | {moved.p50:.1f} "
        f"| {moved.p99:.1f}, without a move {usual.p99:.1f} | {moved.failed} | |",
        flush=True,
    )


def register(store: MlflowStore, options: argparse.Namespace, example: bytes) -> str:
    """Register a package with random weights as the next version."""
    classes = sorted(path.name for path in (SHARED / "data" / "clothing" / "test").iterdir() if path.is_dir())
    backbone = backbones.create(
        options.backbone, num_classes=len(classes), weights="none", image_size=options.image_size
    )
    with tempfile.TemporaryDirectory() as folder:
        package(
            Path(folder),
            state_dict=backbone.module.state_dict(),
            architecture=backbone.architecture,
            classes=classes,
            preprocessing=backbone.preprocessing,
            example=example,
            exports=("onnx",) if set(options.engines) - {"pytorch", "pytorch-compiled"} else (),
            network=backbone.module.eval(),
            sample=[(example, trained(backbone, example))],
        )
        run_id = str(store.client.create_run(store.experiment_id).info.run_id)
        uri = log_packaged_model(store, run_id, Path(folder), "clothing")
    return MlflowRegistry(store).register("clothing", uri, run_id=run_id, study=run_id, tags={})


def trained(backbone: backbones.Backbone, image: bytes) -> list[float]:
    """The network's prediction for an image, without a package."""
    preprocessing = backbone.preprocessing
    assert isinstance(preprocessing, backbones.Preprocessing)
    pixels = resize_and_crop(
        decode(image),
        resize_size=preprocessing.resize_size,
        crop_size=preprocessing.image_size,
        interpolation=preprocessing.interpolation,
        crop_mode=preprocessing.crop_mode,
    )
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (preprocessing.mean, preprocessing.std))
    with torch.inference_mode():
        logits = backbone.module.eval()(((torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std)[None])
    probabilities: list[float] = logits[0].double().softmax(0).tolist()
    return probabilities


def in_process_rate(model: ServedModel, images: Sequence[bytes], seconds: float) -> float:
    """Images per second of decoding and forward passes only, decoding one batch ahead."""
    done, began = 0, time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ahead = [pool.submit(model.prepare, images[index % len(images)]) for index in range(BATCH)]
        while time.perf_counter() - began < seconds:
            batch, start = ahead, done + BATCH
            ahead = [pool.submit(model.prepare, images[(start + index) % len(images)]) for index in range(BATCH)]
            model.probabilities([each.result() for each in batch])
            done += BATCH
        elapsed = time.perf_counter() - began
    return done / elapsed


def scoring_rate(store: MlflowStore, photographs: Sequence[Path], folder: Path, engine: EngineName) -> float:
    """Files per second of batch scoring, from the first to the last, including writing the table."""
    listed = folder / "list.txt"
    listed.write_text("\n".join(map(str, [*photographs] * 5)))
    times: list[tuple[float, int]] = []
    score_files(
        "clothing",
        listed,
        folder / "out.parquet",
        tracking_uri=store.uri,
        home=folder,
        engine=engine,
        on_progress=lambda done, total: times.append((time.perf_counter(), done)),
    )
    return times[-1][1] / (times[-1][0] - times[0][0])


def single_seconds(model: ServedModel, images: Sequence[bytes]) -> float:
    """Median seconds per image for decoding and forward pass."""
    taken = []
    for image in images[:100]:
        began = time.perf_counter()
        model.probabilities([model.prepare(image)])
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def under_load(port: int, path: str, images: Sequence[bytes], clients: int, seconds: float) -> Load:
    """Run clients in a separate process, so that they do not share an interpreter with the measured code."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=send, args=(port, path, images, clients, seconds, queue))
    process.start()
    load: Load = queue.get()
    process.join()
    return load


def send(port: int, path: str, images: Sequence[bytes], clients: int, seconds: float, queue: Any) -> None:
    """Run threads that send one photograph after another."""
    times: list[float] = []
    failed: list[str] = []
    requests = [
        (image, "image/jpeg")
        if path == "/predict"
        else (
            json.dumps({"dataframe_records": [{"image": base64.b64encode(image).decode()}]}).encode(),
            "application/json",
        )
        for image in images
    ]
    end = time.perf_counter() + seconds

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        index = number * 7
        while time.perf_counter() < end:
            body, kind = requests[index % len(requests)]
            index += 1
            began = time.perf_counter()
            try:
                connection.request("POST", path, body, {"Content-Type": kind})
                response = connection.getresponse()
                response.read()
                if response.status != 200:
                    failed.append(str(response.status))
            except OSError as error:
                failed.append(str(error))
                connection.close()
            times.append(time.perf_counter() - began)
        connection.close()

    began = time.perf_counter()
    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - began
    ordered = sorted(times)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    queue.put(Load(len(times) / elapsed, 1e3 * statistics.median(times), 1e3 * p99, len(failed)))


@contextmanager
def server(command: Sequence[str], store: MlflowStore, folder: Path) -> Iterator[tuple[int, psutil.Process]]:
    """A ready server in its own process group."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    environment = {
        **os.environ,
        "THAWLINE_HOME": str(folder),
        "MLFLOW_TRACKING_URI": store.uri,
        "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}",
    }
    with subprocess.Popen(
        [*command, "--port", str(port)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            while True:
                try:
                    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                    connection.request("GET", "/ping")
                    if connection.getresponse().status == 200:
                        break
                except OSError:
                    if process.poll() is not None:
                        sys.exit(f"{command[0]} ended with {process.returncode}.")
                    time.sleep(0.2)
                finally:
                    connection.close()
            under_load(port, "/predict" if "thawline" in command[0] else "/invocations", [warm_up()], 1, 3)
            yield port, psutil.Process(process.pid)
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


def warm_up() -> bytes:
    """A photograph for warm-up."""
    return min((SHARED / "data" / "clothing" / "test" / "dress").iterdir()).read_bytes()


def thawline_command(engine: EngineName) -> list[str]:
    """The command with its defaults, except for the engine."""
    return [str(PROGRAMS / "thawline"), "serve", "clothing", "--engine", engine]


def mlflow_command() -> list[str]:
    """The command with its defaults, in this environment."""
    return [str(PROGRAMS / "mlflow"), "models", "serve", "-m", "models:/clothing@champion", "--env-manager", "local"]


if __name__ == "__main__":
    main()
