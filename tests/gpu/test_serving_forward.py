"""A served network goes to the device that is named, and waits once for its answer: on a GPU that is pretended."""

import json
from pathlib import Path

import numpy as np
from colours import make_package, picture
from pretended_gpu import PretendedGpu

from thawline.backbones import networks
from thawline.data import images
from thawline.registry.servable import Servable, open_servable


def test_a_forward_pass_waits_for_its_answer_alone(gpu: PretendedGpu, tmp_path: Path) -> None:
    folder = make_package(tmp_path / "package")
    settings = json.loads(next(folder.rglob("model.json")).read_text())
    files = {"weights": str(next(folder.rglob("model.safetensors")))}

    def opened(device: str) -> Servable:
        return open_servable(settings, files, networks=networks, inputs=images, device=device)

    with gpu.modes():
        served = opened("cuda:0")
        assert all(gpu.holds(parameter) for parameter in served.network.parameters())
        prepared = [served.prepare(picture(colour)) for colour in ("red", "blue", "green")]
    answers: list[list[float]] = []
    waits = gpu.counted(lambda: answers.extend(served.probabilities(prepared)))
    assert waits.total() == 1, waits
    np.testing.assert_allclose(answers, opened("cpu").probabilities(prepared), atol=1e-6)
