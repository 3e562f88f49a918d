"""Views are reproducible, differ from each other, and can be turned off."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from thawline.config import SearchConfig
from thawline.exceptions import ConfigError
from thawline.training import Augmentation, check_augmentation
from thawline.training.augmentation import _operations

KINDS = ["light", "standard"]


def pictures(count: int = 6, size: int = 16) -> torch.Tensor:
    """Brightness rises to the right in the first channel and downwards in the second."""
    ramp = torch.linspace(0, 1, size)
    one = torch.stack([ramp.expand(size, size), ramp[:, None].expand(size, size), torch.zeros(size, size)])
    return one.expand(count, 3, size, size).clone()


def view_of(augmentation: Augmentation, images: torch.Tensor, rows: np.ndarray, view: int | None = 0) -> torch.Tensor:
    """All that augmentation does to images, which are taken to be normalised already."""
    return augmentation.erase(augmentation.apply(images, rows, view), rows, view)


def test_none_changes_nothing_in_any_epoch() -> None:
    augmentation = Augmentation()
    images = pictures()
    assert augmentation.view_of(7) is None
    assert torch.equal(view_of(augmentation, images, np.arange(6), None), images)
    assert augmentation.stored_views == (None,)
    assert augmentation.is_storable


@pytest.mark.parametrize("kind", KINDS)
def test_views_take_turns_and_without_them_each_epoch_has_its_own(kind: Any) -> None:
    in_turn, always_new = Augmentation(kind, views=3), Augmentation(kind)
    assert [in_turn.view_of(epoch) for epoch in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert [always_new.view_of(epoch) for epoch in range(4)] == [0, 1, 2, 3]
    assert in_turn.stored_views == (0, 1, 2)
    assert not always_new.is_storable


@pytest.mark.parametrize("kind", KINDS)
def test_every_image_is_changed_and_stays_a_picture(kind: Any) -> None:
    images = pictures(200)
    changed = view_of(Augmentation(kind), images, np.arange(200))
    assert changed.shape == images.shape
    assert 0 <= changed.min() <= changed.max() <= 1
    assert all(not torch.equal(one, other) for one, other in zip(images, changed, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_view_of_an_image_does_not_depend_on_the_rest_of_the_batch(kind: Any) -> None:
    augmentation, images = Augmentation(kind, erasing=0.5), pictures(40)
    whole = view_of(augmentation, images, np.arange(40), 1)
    chosen = np.array([31, 4, 17])
    assert torch.equal(view_of(augmentation, images[chosen], chosen, 1), whole[chosen])


@pytest.mark.parametrize("kind", KINDS)
def test_views_are_drawn_from_no_generator_that_others_use(kind: Any) -> None:
    augmentation, images, rows = Augmentation(kind, erasing=0.5), pictures(40), np.arange(40)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = view_of(augmentation, images, rows)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(7)
    with ThreadPoolExecutor(1) as elsewhere:
        assert torch.equal(elsewhere.submit(view_of, augmentation, images, rows).result(), first)


@pytest.mark.parametrize("kind", KINDS)
def test_views_images_and_seeds_differ(kind: Any) -> None:
    images, rows = pictures(), np.arange(6)
    first = view_of(Augmentation(kind), images, rows, 0)
    assert not torch.equal(first, view_of(Augmentation(kind), images, rows, 1))
    assert not torch.equal(first, view_of(Augmentation(kind, seed=1), images, rows, 0))
    assert not torch.equal(first[0], first[1])


def test_a_light_crop_keeps_to_the_image_and_to_at_least_half_of_it() -> None:
    cropped = view_of(Augmentation("light", mirror=False), pictures(200), np.arange(200))
    widths = cropped[:, 0, 0, -1] - cropped[:, 0, 0, 0]
    heights = cropped[:, 1, -1, 0] - cropped[:, 1, 0, 0]
    assert bool((widths * heights > 0.4).all())
    assert bool((widths < 0.9).any())


@pytest.mark.parametrize("kind", KINDS)
def test_about_half_are_mirrored_and_none_where_left_and_right_matter(kind: Any) -> None:
    def mirrored(mirror: bool) -> float:
        augmentation = Augmentation(kind, mirror=mirror)
        cropped = augmentation.apply(pictures(200), np.arange(200), 0)
        right, left = cropped[:, 0, :, -5:].mean((1, 2)), cropped[:, 0, :, :5].mean((1, 2))
        return float((right < left).float().mean())

    assert mirrored(True) == pytest.approx(0.5, abs=0.1)
    # TrivialAugment turns a few upside down, and inverts the bright half of a few.
    assert mirrored(False) == pytest.approx(0, abs=0.0 if kind == "light" else 0.1)


def test_the_operations_of_standard_are_those_of_torchvision() -> None:
    from torchvision.transforms.v2 import TrivialAugmentWide

    theirs = TrivialAugmentWide()
    noise = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0))
    for (operation, weakest, strongest, is_signed), (name, (magnitudes, signed)) in zip(
        _operations(), theirs._AUGMENTATION_SPACE.items(), strict=True
    ):
        strengths = magnitudes(31, 40, 40)
        assert is_signed == signed, name
        for i in (0, 10, 30):
            ours = weakest + (strongest - weakest) * i / 30
            magnitude = 0.0 if strengths is None else float(strengths[i])
            for sign in (1, -1) if signed else (1,):
                wanted = theirs._apply_image_or_video_transform(noise, name, sign * magnitude, "nearest", {})
                others = np.array([weakest, sign * ours, strongest])
                found = operation(torch.stack([noise.flip(0), noise, noise.flip(1)]), others)[1]
                torch.testing.assert_close(found.clamp(0, 1), wanted, msg=f"{name} {sign * magnitude}")


def test_standard_does_all_of_its_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    from thawline.training import augmentation

    done: list[tuple[int, float]] = []
    recording = [
        (lambda images, sizes, i=i: (done.extend((i, size) for size in sizes), images)[1], low, high, signed)
        for i, (_, low, high, signed) in enumerate(_operations())
    ]
    monkeypatch.setattr(augmentation, "_operations", lambda: recording)
    Augmentation("standard").apply(pictures(300, size=8), np.arange(300), 0)
    assert {which for which, _ in done} == set(range(14))
    turns = [magnitude for which, magnitude in done if which == 5]
    assert min(turns) < 0 < max(turns)
    assert min(turns) >= -135
    assert max(turns) <= 135


@pytest.mark.parametrize("probability", [0.25, 1.0])
def test_so_many_images_have_a_rectangle_erased(probability: float) -> None:
    ones = torch.ones(400, 3, 20, 20)
    erased = view_of(Augmentation(erasing=probability), ones, np.arange(400)) == 0
    assert torch.equal(erased[:, 0], erased[:, 1])
    shares = erased[:, 0].float().mean((1, 2))
    assert float((shares > 0).float().mean()) == pytest.approx(probability, abs=0.05)
    assert shares.max() < 0.4
    assert shares[shares > 0].min() >= 1 / 400
    rows, columns = erased[:, 0].any(2).sum(1), erased[:, 0].any(1).sum(1)
    assert torch.equal(rows * columns, erased[:, 0].sum((1, 2))), "each is one rectangle"
    assert torch.equal(view_of(Augmentation(), ones, np.arange(400)), ones)


def test_erasing_changes_no_crop() -> None:
    images, rows = pictures(50), np.arange(50)
    plain = view_of(Augmentation("light"), images, rows)
    erased = view_of(Augmentation("light", erasing=0.3), images, rows)
    assert bool(((erased == plain) | (erased == 0)).all())
    assert not torch.equal(erased, plain)


def test_a_network_is_fed_changed_images_of_which_what_was_erased_has_the_mean_colour(images: Any) -> None:
    plain, erased = images(12), images(12, augmentation=Augmentation(erasing=1.0))
    rows = np.arange(12)
    before, after = (each.prepare(each.read(rows, 0), rows, 0) for each in (plain, erased))
    changed = before != after
    assert bool(changed.any((1, 2, 3)).all())
    assert bool((after[changed] == 0).all())


def test_names_of_views_differ_by_all_that_changes_pixels() -> None:
    others = [
        Augmentation("light"),
        Augmentation("standard"),
        Augmentation("light", mirror=False),
        Augmentation("light", erasing=0.5),
        Augmentation("light", seed=1),
    ]
    assert len({each.name_of(view) for each in others for view in (0, 1)}) == 10
    assert {each.name_of(None) for each in others} == {"plain"}


def build(*, space: dict[str, Any] | None = None, **train: Any) -> SearchConfig:
    return SearchConfig.build({"data": {"path": "x"}, "train": train, "space": space or {}})


def test_the_configuration_says_what_is_done_and_how_often_it_is_new() -> None:
    train = build(augmentation="standard", views=4, mirror=False, random_erasing=0.1).train
    assert Augmentation.of(train, 7) == Augmentation("standard", 4, mirror=False, erasing=0.1, seed=7)
    assert Augmentation.of(train, 7, "light") == Augmentation("light", 4, mirror=False, erasing=0.1, seed=7)
    assert not Augmentation.of(build().train, 7).changes_images


@pytest.mark.parametrize(
    ("wrong", "instead"),
    [("fresh", "write augmentation: light"), ("views(4)", "write augmentation: light and views: 4"), ("random", "")],
)
def test_another_word_is_refused_with_those_that_there_are(wrong: str, instead: str) -> None:
    with pytest.raises(ConfigError, match=r"train.augmentation: .*none.*light.*standard.*" + instead):
        build(augmentation=wrong)


def test_views_of_images_that_nothing_changes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.views=4 needs augmentation: set train\.augmentation to light"):
        build(views=4)
    assert build(views=4, space={"augmentation": ["none", "light"]}).train.views == 4
    assert build(views=4, random_erasing=0.1).train.views == 4


def test_texts_can_be_neither_changed_nor_mixed_and_all_that_is_wrong_is_reported() -> None:
    wrong = {"augmentation": "light", "views": 2, "random_erasing": 0.1, "mixup": 0.2, "cutmix": 1.0}
    config = build(**wrong, space={"augmentation": ["none", "standard"]})
    with pytest.raises(ConfigError) as error:
        check_augmentation(config, "texts")
    for key, value in wrong.items():
        assert f"train.{key}={value}" in str(error.value)
    assert "space.augmentation=" in str(error.value)
    check_augmentation(config, "images")
    check_augmentation(build(space={"augmentation": ["none"]}), "texts")
