"""Tests that every backbone must pass, whatever its library; they check effects on tensors."""

# ruff: noqa: S101  these are pytest tests, which use asserts
import json
import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from thawline import backbones
from thawline.backbones import Backbone, TextPreprocessing, networks, section
from thawline.backbones.building import build_without_memory
from thawline.freezing import freeze_to, train_mode, trainable_parameters

__all__ = ["BackboneContract", "inputs_for", "restore"]


class BackboneContract(ABC):
    """The contract for freezing, storing activations and packaging; pytest runs subclasses named ``Test…``.

    Make it small: a backbone with random weights (``weights="none"``) at a small image size takes seconds.
    """

    classes = 5
    """Number of classes of the head."""
    numbers_of_classes = (2, 10, 200)
    """Numbers of classes for the check of the first loss."""

    @abstractmethod
    def make(self, num_classes: int) -> Backbone:
        """A fresh backbone from :func:`thawline.backbones.create`."""

    def backbone(self) -> Backbone:
        """A fresh backbone with random weights in the head: with zeros, the logits would not depend on the input."""
        backbone = self.make(self.classes)
        weight = backbone.module.get_parameter(f"{backbone.head.name}.weight").detach()
        drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        weight.copy_(drawn / weight[0].numel() ** 0.5)
        return backbone

    def test_its_first_loss_is_that_of_guessing_and_its_head_learns_from_it(self) -> None:
        """Whatever initialisation its library uses for heads."""
        labels = torch.tensor([0, 0, 0, 1])
        for classes in self.numbers_of_classes:
            backbone = self.make(classes)
            freeze_to(backbone, len(backbone.layer_groups), batch_norm="frozen_eval")
            backbone.module.eval()
            loss = nn.functional.cross_entropy(backbone.module(inputs_for(backbone, 4)), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            assert loss.item() < 1.2 * math.log(classes)
            head = backbone.module.get_submodule(backbone.head.name)
            gradients = [parameter.grad for parameter in head.parameters()]
            for label in (0, 1):  # with random layers, features may all be 0: then only the bias learns
                assert any(gradient is not None and gradient[label].any() for gradient in gradients)

    def test_images_or_tokens_go_in_and_one_logit_a_class_comes_out(self) -> None:
        """A batch of two gives ``[2, classes]``."""
        backbone = self.backbone()
        backbone.module.eval()
        with torch.no_grad():
            assert backbone.module(inputs_for(backbone)).shape == (2, self.classes)

    def test_groups_and_head_hold_every_parameter_and_buffer_exactly_once(self) -> None:
        """The head is one layer, and every group has a parameter."""
        backbone = self.backbone()
        held = [name for group in [*backbone.layer_groups, backbone.head] for name in group.tensors]
        everything = [name for name, _ in [*backbone.module.named_parameters(), *backbone.module.named_buffers()]]
        assert sorted(held) == sorted(everything)

        parameters = {name for name, _ in backbone.module.named_parameters()}
        assert all(parameters.intersection(group.tensors) for group in backbone.layer_groups)
        assert f"{backbone.head.name}.weight" in backbone.head.tensors
        assert all(name.rpartition(".")[0] == backbone.head.name for name in backbone.head.tensors)

    def test_every_module_belongs_to_one_group_or_the_head(self) -> None:
        """The root, which ends last, belongs to the head."""
        backbone = self.backbone()
        held = [name for group in [*backbone.layer_groups, backbone.head] for name in group.modules]
        assert sorted(held) == sorted(name for name, _ in backbone.module.named_modules())
        assert "" in backbone.head.modules

    def test_the_catalogue_tells_the_truth_of_it(self) -> None:
        """The listed layer groups are those of the network."""
        backbone = self.backbone()
        assert tuple(group.name for group in backbone.layer_groups) == backbones.describe(backbone.name).layer_groups
        assert backbones.depth_of(backbone.name) == len(backbone.layer_groups)

    def test_training_moves_what_is_free_and_nothing_that_is_frozen(self) -> None:
        """Check parameters and buffers, at three depths."""
        backbone = self.backbone()
        parameters = {name for name, _ in backbone.module.named_parameters()}
        for depth in _depths_of(backbone):
            before = _snapshot(backbone.module)
            _train_a_little(backbone, depth)
            moved = {
                name for name, value in backbone.module.state_dict().items() if not torch.equal(before[name], value)
            }
            frozen = {name for group in backbone.layer_groups[:depth] for name in group.tensors}
            assert not moved & frozen

            free = [*backbone.layer_groups[depth:], backbone.head]
            assert all(moved & parameters.intersection(group.tensors) for group in free)
            statistics = {name for group in free for name in group.tensors if name.endswith("running_mean")}
            assert statistics <= moved
            reached = {name for name, parameter in backbone.module.named_parameters() if parameter.grad is not None}
            assert reached == parameters - frozen

    def test_frozen_batch_norms_are_in_evaluation_mode_and_free_ones_in_training_mode(self) -> None:
        """The statistics of frozen batch-norms are frozen too."""
        backbone = self.backbone()
        for depth in _depths_of(backbone):
            train_mode(backbone, depth, batch_norm="train_all")
            frozen = {name for group in backbone.layer_groups[:depth] for name in group.tensors}
            for path, module in backbone.module.named_modules():
                if isinstance(module, _BatchNorm):
                    assert module.training == (f"{path}.weight" not in frozen), path
        assert backbone.module.training

    def test_frozen_activations_are_the_same_in_every_pass(self) -> None:
        """Therefore they can be stored."""
        backbone = self.backbone()
        images = inputs_for(backbone)
        depth = len(backbone.layer_groups)
        train_mode(backbone, depth, batch_norm="train_all")
        prefix = section(backbone, 0, depth)
        with torch.no_grad():
            assert torch.equal(prefix(images), prefix(images))

    def test_every_border_between_groups_cuts_it_in_two_without_a_bit_of_difference(self) -> None:
        """The tail reads stored activations without changing them."""
        backbone = self.backbone()
        backbone.module.eval()
        images = inputs_for(backbone)
        with torch.no_grad():
            whole = backbone.module(images)
            for depth in _borders_of(backbone):
                stored, tail = section(backbone, 0, depth)(images), section(backbone, depth)
                kept = stored.clone()
                assert len(stored) == len(images), "one row of activations for each image"
                assert torch.equal(tail(stored), whole)
                assert torch.equal(stored, kept), "the tail must not write into stored activations"
                free = {name for group in [*backbone.layer_groups[depth:], backbone.head] for name in group.tensors}
                assert {name for name, _ in tail.named_parameters()} <= free

    def test_its_sections_one_after_the_other_are_the_whole(self) -> None:
        """Group after group, bit-equal."""
        backbone = self.backbone()
        backbone.module.eval()
        images = inputs_for(backbone, count=1)
        deepest = len(backbone.layer_groups)
        with torch.no_grad():
            passed_on = images
            for start in range(deepest):
                passed_on = section(backbone, start, start + 1)(passed_on)
            assert torch.equal(section(backbone, deepest)(passed_on), backbone.module(images))

    def test_a_tail_trains_to_the_very_weights_that_the_whole_does(self) -> None:
        """On stored activations, one step."""
        backbone = self.backbone()
        depth, start = max(1, len(backbone.layer_groups) // 2), _snapshot(backbone.module)
        images, labels = inputs_for(backbone), torch.arange(2)

        def after_a_step(from_activations: bool) -> dict[str, Tensor]:
            restore(backbone.module, start)
            freeze_to(backbone, depth, batch_norm="train_all")
            train_mode(backbone, depth, batch_norm="train_all")
            torch.manual_seed(0)
            if from_activations:
                with torch.no_grad():
                    stored = section(backbone, 0, depth)(images)
                logits = section(backbone, depth)(stored)
            else:
                logits = backbone.module(images)
            parameters = trainable_parameters(backbone).values()
            optimizer = torch.optim.SGD(parameters, lr=0.05)
            nn.functional.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            return _snapshot(backbone.module)

        whole, tail = after_a_step(from_activations=False), after_a_step(from_activations=True)
        assert all(torch.equal(value, tail[name]) for name, value in whole.items())
        assert any(not torch.equal(value, start[name]) for name, value in whole.items())

    def test_leaving_out_unread_tokens_changes_the_last_bits_alone(self) -> None:
        """With ``exact=False``."""
        backbone = self.backbone()
        backbone.module.eval()
        images = inputs_for(backbone)
        with torch.no_grad():
            torch.testing.assert_close(section(backbone, 0, exact=False)(images), backbone.module(images))

    def test_its_architecture_rebuilds_it_without_thawline(self) -> None:
        """From plain JSON, as a packaged model does."""
        backbone = self.backbone()
        architecture = json.loads(json.dumps(backbone.architecture))
        rebuilt = build_without_memory(lambda: networks.build(architecture))
        assert {name: value.shape for name, value in rebuilt.state_dict().items()} == {
            name: value.shape for name, value in backbone.module.state_dict().items()
        }


def inputs_for(backbone: Backbone, count: int = 2) -> Tensor:
    """Images ``[N, 3, S, S]``, or tokens of texts of different lengths ``[N, 7]``, with a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    preprocessing = backbone.preprocessing
    if isinstance(preprocessing, TextPreprocessing):
        tokens = torch.randint(5, 20, (count, 7), generator=generator)
        tokens[1:, 4:] = -1
        return tokens
    return torch.randn(count, 3, preprocessing.image_size, preprocessing.image_size, generator=generator)


def _borders_of(backbone: Backbone) -> list[int]:
    """All boundaries, or about six for a network with many layer groups."""
    deepest = len(backbone.layer_groups)
    return (
        sorted({1, 2, deepest - 1, deepest} | set(range(1, deepest + 1, max(1, deepest // 4)))) if deepest > 1 else [1]
    )


def _depths_of(backbone: Backbone) -> list[int]:
    deepest = len(backbone.layer_groups)
    return [0, deepest // 2, deepest]


def _snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _train_a_little(backbone: Backbone, depth: int) -> None:
    """Train two steps: in the first, a head of zeros passes no gradient back."""
    torch.manual_seed(0)
    freeze_to(backbone, depth, batch_norm="train_all")
    optimizer = torch.optim.SGD(trainable_parameters(backbone).values(), lr=0.05)
    labels = torch.arange(2)
    inputs = inputs_for(backbone)
    for _ in range(2):
        train_mode(backbone, depth, batch_norm="train_all")
        optimizer.zero_grad()
        nn.functional.cross_entropy(backbone.module(inputs), labels).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trainable_parameters(backbone).values(), 1.0)
        optimizer.step()


def restore(module: nn.Module, start: dict[str, Tensor]) -> None:
    """Restore a module's values, and clear its gradients."""
    state = module.state_dict()  # with the version number that MNASNet requires
    state.update(start)
    module.load_state_dict(state)
    module.zero_grad()
