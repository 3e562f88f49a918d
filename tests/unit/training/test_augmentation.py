"""Views are the same for whoever makes them, differ from each other, and can be turned off."""

import numpy as np
import pytest
import torch

from thawline.config import SearchConfig
from thawline.exceptions import ConfigError
from thawline.training import Augmentation


def pictures(count: int = 6, size: int = 16) -> torch.Tensor:
    """Brightness rises to the right in the first channel and downwards in the second."""
    ramp = torch.linspace(0, 1, size)
    one = torch.stack([ramp.expand(size, size), ramp[:, None].expand(size, size), torch.zeros(size, size)])
    return one.expand(count, 3, size, size).clone()


def parse(text: str, *, mirror: bool = True, seed: int = 0) -> Augmentation:
    return Augmentation.parse(text, mirror=mirror, seed=seed)


def test_none_changes_nothing_in_any_epoch() -> None:
    augmentation = parse("none")
    images = pictures()
    assert augmentation.view_of(7) is None
    assert torch.equal(augmentation.apply(images, np.arange(6), None), images)
    assert augmentation.stored_views == (None,)


def test_views_take_turns_and_fresh_ones_never_come_again() -> None:
    assert [parse("views(3)").view_of(epoch) for epoch in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert [parse("fresh").view_of(epoch) for epoch in range(4)] == [0, 1, 2, 3]
    assert parse("views(3)").stored_views == (0, 1, 2)
    assert not parse("fresh").is_storable


def test_a_view_of_an_image_does_not_hang_on_the_rest_of_the_batch() -> None:
    augmentation, images = parse("views(2)"), pictures()
    whole = augmentation.apply(images, np.arange(6), 1)
    part = augmentation.apply(images[[1, 4]], np.array([1, 4]), 1)
    assert torch.equal(part, whole[[1, 4]])


def test_views_images_and_seeds_differ() -> None:
    images, rows = pictures(), np.arange(6)
    first = parse("views(2)").apply(images, rows, 0)
    assert not torch.equal(first, parse("views(2)").apply(images, rows, 1))
    assert not torch.equal(first, parse("views(2)", seed=1).apply(images, rows, 0))
    assert not torch.equal(first[0], first[1])


def test_a_crop_keeps_to_the_image_and_to_at_least_half_of_it() -> None:
    cropped = parse("fresh", mirror=False).apply(pictures(200), np.arange(200), 0)
    widths = cropped[:, 0, 0, -1] - cropped[:, 0, 0, 0]
    heights = cropped[:, 1, -1, 0] - cropped[:, 1, 0, 0]
    assert cropped.min() >= 0
    assert cropped.max() <= 1
    assert bool((widths * heights > 0.4).all())
    assert bool((widths < 0.9).any())


def test_about_half_are_mirrored_and_none_where_left_and_right_matter() -> None:
    def mirrored(mirror: bool) -> float:
        cropped = parse("fresh", mirror=mirror).apply(pictures(400), np.arange(400), 0)
        return float((cropped[:, 0, 0, -1] < cropped[:, 0, 0, 0]).float().mean())

    assert mirrored(True) == pytest.approx(0.5, abs=0.1)
    assert mirrored(False) == 0


@pytest.mark.parametrize("wrong", ["views", "views(0)", "views(-1)", "random"])
def test_another_word_is_refused_with_those_that_there_are(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"train.augmentation: must be none, fresh or views\(K\)"):
        SearchConfig.build({"data": {"path": "x"}, "train": {"augmentation": wrong}})
