"""A packaged model for inference: encoded images or texts in, probabilities out, from files that contain only data.

Thawline reads every package with this file. Each package also has a copy of it for MLflow's tools (``pyfunc.py``), so
it does not import Thawline, only NumPy, and PyTorch and safetensors or, for a network in int8, ONNX Runtime.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

__all__ = [
    "BATCH",
    "Answer",
    "QuantisedServable",
    "Servable",
    "distances",
    "open_servable",
    "scaled",
    "seeing",
    "watch",
]

BATCH = 32
"""Maximum number of images or texts per forward pass, to limit the memory for a large request."""
_LONGEST_TEXT = 1_000_000
"""Maximum number of characters to read. No network reads as many, and tokenizing 32 MB would take 3.5 GB of memory."""
_PADDING = -1
"""Pads texts that are shorter than the longest of their batch; no token has this number."""
_SEEN: ContextVar[list[Any] | None] = ContextVar("seen", default=None)
"""Inputs of heads in this thread, if they are recorded."""


class Answer(NamedTuple):
    """The answer for one item."""

    probabilities: list[float]
    """``[num_classes]``, in the order of the classes."""
    distance: float | None = None
    """Distance from the nearest example of the package, 0 to 2; ``None`` if the package has none."""


class Servable:
    """The network of a package, with its preprocessing and postprocessing.

    Thread safety: after loading, nothing is written.
    """

    engine = "pytorch"
    """The engine that computes the network."""
    device: Any
    """The device that computes it."""

    def __init__(
        self,
        settings: dict[str, Any],
        files: Mapping[str, str],
        *,
        networks: Any,
        inputs: Any,
        device: str | None = None,
    ) -> None:
        """Build the network and load its weights.

        Args:
            settings: contents of ``model.json``.
            files: paths of the package's other files by name: ``weights`` (``model.safetensors``), ``tokenizer`` for
                texts, and ``reference`` if it has the flag ``unknown``.
            networks: the module ``thawline.backbones.networks``, or a copy.
            inputs: the module ``thawline.data.images`` or ``thawline.data.tokenizer``, or a copy.
            device: to compute on, such as ``cuda:1``; by default a GPU if there is one.

        Raises:
            ValueError: if the weights do not fit the network.
            KeyError: if the settings lack an entry.
        """
        import safetensors.torch
        import torch

        self._describe(settings, files, inputs)
        architecture = self.settings["architecture"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # inception_v3, googlenet: how weights will be initialised
            network = networks.build(architecture)
        weights = safetensors.torch.load_file(files["weights"])
        # Fill the network's own state_dict, which has the version numbers that mnasnet needs; a plain dict has none.
        state = network.state_dict()
        if different := sorted(state.keys() ^ weights.keys()):
            name = architecture.get("builder") or architecture["config"]["model_type"]
            raise ValueError(f"the weights do not fit {name}: {', '.join(different[:5])}")
        state.update(weights)
        network.load_state_dict(state)
        if self.kind == "images":  # they arrive in channels-last order, which is also the fastest for convolutions
            network = network.to(memory_format=torch.channels_last)
        self.network = network.eval()
        if self.farthest is not None:
            watch(network.get_submodule(settings["unknown"]["head"]))
        self.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def _describe(self, settings: dict[str, Any], files: Mapping[str, str], inputs: Any) -> None:
        """Read everything except the network."""
        self.settings = settings
        self.kind: str = settings["kind"]
        self.classes: list[str] = settings["classes"]
        self.temperature: float = settings["temperature"]
        sets: dict[str, Any] = settings.get("prediction_sets") or {}  # older packages have none
        self.threshold: float | None = sets.get("threshold")
        unknown: dict[str, Any] = settings.get("unknown") or {}  # older packages cannot tell
        self.farthest: float | None = unknown.get("threshold")
        self._reference = _reference(files["reference"]) if unknown else None
        self.inputs: _Images | _Texts = _INPUTS[self.kind](settings, files, inputs)

    def to(self, device: str) -> None:
        """Move to another device, such as ``cpu`` or ``cuda:1``."""
        import torch

        self.device = torch.device(device)
        self.network = self.network.to(self.device)
        self.inputs.to(self.device)

    def prepare(self, item: Any) -> Any:
        """The network's input for one item, computed separately so that threads can do it in advance.

        Args:
            item: an encoded image (bytes) or a text (str).

        Returns:
            For an image, uint8 ``[S, S, 3]``, resized and cropped as in training; for a text, its tokens, int32
            ``[T]``, truncated as in training.

        Raises:
            ValueError: if it cannot be read, with a readable reason.
        """
        return self.inputs.prepare(item)

    def outputs(self, prepared: list[Any]) -> tuple[list[list[float]], Any]:
        """One forward pass on ``[N]`` results of :meth:`prepare`.

        Returns:
            Probabilities ``[N][num_classes]``, in the order of the classes; and the head's input, NumPy ``[N, F]``, or
            ``None`` if the package has no reference examples.
        """
        import torch

        with torch.inference_mode(), seeing() as seen:
            logits = self.network(self.inputs.batch(prepared))
            probabilities: list[list[float]] = (logits.double() / self.temperature).softmax(1).tolist()
            features = seen[0].cpu().numpy() if self.farthest is not None else None
        return probabilities, features

    def answers(self, prepared: list[Any]) -> list[Answer]:
        """The same with the distance from the nearest reference example, if the package has them."""
        probabilities, features = self.outputs(prepared)
        if self.farthest is None:
            return [Answer(each) for each in probabilities]
        far = distances(features, self._reference).tolist()
        return [Answer(*each) for each in zip(probabilities, far, strict=True)]

    def probabilities(self, prepared: list[Any]) -> list[list[float]]:
        """Only the probabilities, ``[N][num_classes]``."""
        return self.outputs(prepared)[0]

    def row(self, answer: Answer) -> dict[str, Any]:
        """One item's answer for clients, with the most likely class.

        If the package has prediction sets, ``prediction_set`` lists the classes that the item may belong to, most
        likely first; if it has reference examples, ``unknown`` is whether the item is unlike all of them.
        """
        probabilities = answer.probabilities
        best = max(range(len(self.classes)), key=probabilities.__getitem__)
        named = dict(zip(self.classes, probabilities, strict=True))
        row = {"class": self.classes[best], "probability": probabilities[best], "probabilities": named}
        further = {"prediction_set": self.prediction_set(probabilities), "unknown": self.unknown(answer)}
        return row | {name: value for name, value in further.items() if value is not None}

    def prediction_set(self, probabilities: list[float]) -> list[str] | None:
        """The classes that an item with these probabilities may belong to, most likely first; ``None`` without sets."""
        threshold = self.threshold
        if threshold is None:
            return None
        best = max(range(len(self.classes)), key=probabilities.__getitem__)
        others = [n for n, value in enumerate(probabilities) if value >= threshold and n != best]
        others.sort(key=lambda number: -probabilities[number])
        return [self.classes[number] for number in (best, *others)]

    def unknown(self, answer: Answer) -> bool | None:
        """Whether an item seems to belong to none of the classes; ``None`` if the package cannot tell."""
        if self.farthest is None or answer.distance is None:
            return None
        return not answer.distance <= self.farthest  # NaN is unknown


def watch(head: Any) -> Any:
    """Record a layer's inputs for :func:`seeing`, until ``remove`` of the result is called."""
    return head.register_forward_pre_hook(_see)


@contextmanager
def seeing() -> Iterator[list[Any]]:
    """Yield a list to which watched layers append their inputs in this thread, as features ``[N, F]`` in single
    precision, averaged over positions if there are several."""
    seen: list[Any] = []
    before = _SEEN.set(seen)
    try:
        yield seen
    finally:
        _SEEN.reset(before)


def _see(head: Any, arguments: tuple[Any, ...]) -> None:
    seen = _SEEN.get()
    if seen is None:
        return
    given = arguments[0]
    channels = 1 if hasattr(head, "kernel_size") else given.ndim - 1
    places = tuple(each for each in range(1, given.ndim) if each != channels)
    seen.append(given.float().mean(places) if places else given.float())


def scaled(features: Any) -> Any:
    """Features ``[N, F]``, scaled to length 1."""
    import numpy as np

    with np.errstate(invalid="ignore", over="ignore"):  # NaN stays NaN
        length = np.linalg.norm(features, axis=1, keepdims=True)
        return features / np.maximum(length, np.finfo(np.float32).tiny)


def distances(features: Any, reference: Any) -> Any:
    """One minus the largest cosine between features, ``[N, F]``, and those of the reference, which have length 1.

    Returns:
        ``[N]``, from 0 to 2, or NaN for features with NaN.
    """
    return 1 - (scaled(features) @ reference.T).max(1)


def _reference(file: str) -> Any:
    """The features of the known examples, float32 ``[rows, F]``."""
    import numpy as np
    import safetensors.numpy

    return np.ascontiguousarray(safetensors.numpy.load_file(file)["features"], dtype=np.float32)


class QuantisedServable(Servable):
    """An image network in int8: an ONNX file, computed by ONNX Runtime on the CPU, without PyTorch."""

    engine = "onnxruntime"
    device = "cpu"

    def __init__(self, settings: dict[str, Any], files: Mapping[str, str], *, inputs: Any, threads: int = 0) -> None:
        """Read the ONNX file.

        Args:
            settings: contents of ``model.json``.
            files: the paths of ``onnx``, and of ``reference`` if it has the flag ``unknown``.
            inputs: the module ``thawline.data.images``, or a copy.
            threads: per forward pass; 0 for all cores.
        """
        import onnxruntime

        self._describe(settings, files, inputs)
        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors; warnings are about the machine, such as a GPU that it cannot list
        # Threads that spin between forward passes would take cores from those that decode.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        graph = Path(files["onnx"]).read_bytes()  # with a path, ONNX Runtime would also read linked files
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def to(self, device: str) -> None:
        """Stay on the CPU.

        Raises:
            ValueError: for any other device.
        """
        if device not in ("auto", "cpu"):
            raise ValueError(f"a network in int8 runs on the CPU, not on {device}")

    def outputs(self, prepared: list[Any]) -> tuple[list[list[float]], Any]:
        """See :meth:`Servable.outputs`; normalisation, calibration and softmax are part of the graph."""
        import numpy as np

        pixels = np.stack(prepared).transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
        answers, *features = self._session.run(None, {"pixels": pixels})
        return answers.tolist(), features[0] if features else None


class _Images:
    """Preprocessing of encoded images, as in training."""

    column = "image"

    def __init__(self, settings: dict[str, Any], files: Mapping[str, str], images: Any) -> None:
        self._preprocessing = settings["preprocessing"]
        self._max_pixels: int = settings["max_pixels"]
        self._reduced: bool = settings.get("reduced", False)  # older packages: decoded at full size
        self._images = images

    def to(self, device: Any) -> None:
        import torch

        self._device = device
        self.mean = torch.tensor(self._preprocessing["mean"], device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(self._preprocessing["std"], device=device).view(1, 3, 1, 1)

    def sent(self, value: Any) -> bytes:
        """An encoded image from a client's value."""
        data: bytes = self._images.encoded_image(value)
        return data

    def prepare(self, item: Any) -> Any:
        if isinstance(item, str):
            raise ValueError("it is a text, but this model classifies images")
        return self._images.seen(
            item,
            max_pixels=self._max_pixels,
            resize_size=self._preprocessing["resize_size"],
            crop_size=self._preprocessing["image_size"],
            interpolation=self._preprocessing["interpolation"],
            crop_mode=self._preprocessing.get("crop_mode", "center"),  # older packages always cut the centre out
            reduced=self._reduced,
        )

    def batch(self, prepared: list[Any]) -> Any:
        """uint8 images ``[S, S, 3]`` to normalised ones, ``[N, 3, S, S]``, on the network's device."""
        import numpy as np

        pixels = _sent(np.stack(prepared), self._device).permute(0, 3, 1, 2)
        return (pixels.float() / 255 - self.mean) / self.std


class _Texts:
    """Tokenization of texts, as in training."""

    column = "text"

    def __init__(self, settings: dict[str, Any], files: Mapping[str, str], texts: Any) -> None:
        self._texts = texts
        tokenizer = Path(files["tokenizer"]).read_text(encoding="utf-8")
        self._tokenizer = self._texts.TextTokenizer(tokenizer, settings["preprocessing"]["max_length"])

    def to(self, device: Any) -> None:
        self._device = device

    def sent(self, value: Any) -> str:
        """A text from a client's value."""
        if not isinstance(value, str):
            raise ValueError(f"a text must be a string, but got {type(value).__name__}")
        return value

    def prepare(self, item: Any) -> Any:
        if not isinstance(item, str):
            raise ValueError("it is not a text, but this model classifies texts")
        item = item[:_LONGEST_TEXT]
        if not self._texts.normalized(item):
            raise ValueError("the text is empty")
        try:
            item.encode()
        except UnicodeEncodeError:  # JSON can express it
            raise ValueError("the text contains half of a character (a lone surrogate)") from None
        return self._tokenizer.encode([item])[0]

    def batch(self, prepared: list[Any]) -> Any:
        """int32 tokens ``[T]`` of texts to int64 ``[N, max T]``, on the network's device."""
        import numpy as np

        tokens = np.full((len(prepared), max(map(len, prepared))), _PADDING, dtype=np.int64)
        for row, text in zip(tokens, prepared, strict=True):
            row[: len(text)] = text
        return _sent(tokens, self._device)


def _sent(array: Any, device: Any) -> Any:
    """Move an array to a device; the copy from pinned memory to a GPU is asynchronous."""
    import torch

    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


_INPUTS: dict[str, type[_Images] | type[_Texts]] = {"images": _Images, "texts": _Texts}


def open_servable(
    settings: dict[str, Any],
    files: Mapping[str, str],
    *,
    networks: Any,
    inputs: Any,
    threads: int = 0,
    device: str | None = None,
) -> Servable:
    """Open a package, in int8 or single precision depending on ``settings``; arguments are those of the classes."""
    if settings.get("precision") == "int8":
        return QuantisedServable(settings, files, inputs=inputs, threads=threads)
    return Servable(settings, files, networks=networks, inputs=inputs, device=device)
