"""A trial that takes seconds: 24 small pictures, the smallest backbone, a local MLflow store."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from thawline.activations import StoredSplits
from thawline.backbones import preprocessing_of
from thawline.config import DataConfig, SearchConfig
from thawline.data import Manifest, decoded, scan
from thawline.search import worker
from thawline.search.probing import ProbeFile
from thawline.search.spec import TrialSpec
from thawline.tracking import MlflowStore, start_study_run
from thawline.training import Augmentation, Hyperparameters

SIZE = 32
BACKBONE = "mobilenet_v3_small"


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, bright and dark, that anything can tell apart."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for split, count in (("train", 16), ("validation", 8), ("test", 8)):
        for name, level in (("bright", 170), ("dark", 0)):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = (random.integers(0, 80, (SIZE, SIZE, 3)) + level).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def scanned(pictures: Path) -> tuple[Manifest, Path]:
    """What is known of the pictures, and where they are as they were decoded; so many processes are started once."""
    manifest = scan(DataConfig(path=pictures, workers=1))
    images = decoded(
        manifest,
        resize_size=SIZE,
        crop_size=SIZE,
        interpolation="bilinear",
        cache_dir=pictures.parent / "decoded",
        workers=1,
    )
    return manifest, images.path


@pytest.fixture
def probe_once(own_home: Path, pictures: Path) -> Iterator[None]:
    """Trials begin with the linear probe that the first of these tests fitted, where they would fit the same."""
    kept = pictures.parent / "probe.safetensors"
    own = ProbeFile.path(own_home, "tests", BACKBONE)
    if kept.exists():
        own.parent.mkdir(parents=True)
        shutil.copyfile(kept, own)
    yield
    if own.exists() and not kept.exists():
        shutil.copyfile(own, kept)


@pytest.fixture
def make_spec(
    pictures: Path, scanned: tuple[Manifest, Path], store: MlflowStore, own_home: Path
) -> Iterator[Callable[..., TrialSpec]]:
    manifest, images = scanned

    def make(
        *,
        number: int = 0,
        depth: int = 6,
        learning_rate: float = 1e-2,
        epochs: int = 2,
        study: str = "tests",
        **more: Any,
    ) -> TrialSpec:
        config = SearchConfig.build(
            {
                "data": {"path": str(pictures), "workers": 1},
                "backbone": {"name": BACKBONE, "weights": "starter", "image_size": SIZE},
                "train": {"epochs": epochs, "batch_size": 8, "device": "cpu", **more},
                "study": {"name": study},
                "tracking": {"system_metrics": False},
                "promotion": {"exports": []},
            }
        )
        parent = start_study_run(store, study=study, params={}, tags={})
        return TrialSpec(
            number=number,
            hyperparameters=Hyperparameters(BACKBONE, depth, learning_rate, 0.01, 1.0, "adamw"),
            config=config,
            study=study,
            classes=manifest.classes,
            activations=StoredSplits(
                folder=own_home / "cache" / "activations",
                budget=None,
                plan=None,
                data=images,
                backbone=BACKBONE,
                weights="0" * 16,
                preprocessing=preprocessing_of(BACKBONE, weights="starter", image_size=SIZE),
                augmentations=(Augmentation(),),
            ),
            home=own_home,
            store=store,
            parent_run_id=parent,
            threads=1,
        )

    return make


@pytest.fixture(autouse=True)
def no_worker_is_left() -> Iterator[None]:
    """A process that waits for the next call must not serve the next test."""
    yield
    worker.stop_workers()
    worker._stopping.clear()
