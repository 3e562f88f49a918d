"""A sheet of pictures shows each picture, whether it is right, and what it is called."""

import numpy as np

from thawline.pictures import label_grid

RED, GREEN = np.array([210, 30, 30]), np.array([0, 130, 60])


def of(colours: list[int], side: int = 32) -> np.ndarray:
    return np.stack([np.full((side, side, 3), colour, dtype=np.uint8) for colour in colours])


def count(sheet: np.ndarray, colour: np.ndarray) -> int:
    return int((sheet == colour).all(axis=2).sum())


def test_every_picture_is_enlarged_and_framed_by_whether_it_is_wrong() -> None:
    sheet = label_grid(of([40, 90, 200]), ["a\nb"] * 3, [True, False, True], columns=2)
    assert sheet.dtype == np.uint8
    assert sheet.shape[2] == 3
    assert [count(sheet, np.full(3, colour)) >= 112 * 112 for colour in (40, 90, 200)] == [True] * 3
    assert count(sheet, RED) == 2 * count(sheet, GREEN) > 0


def test_pictures_lie_row_by_row_in_as_many_columns_as_are_asked_for() -> None:
    one, two, three = (label_grid(of([0] * n), ["a"] * n, [False] * n, columns=2) for n in (1, 2, 3))
    assert one.shape[0] == two.shape[0] < three.shape[0]
    assert one.shape[1] < two.shape[1] == three.shape[1]


def test_a_caption_is_drawn_below_its_picture_and_a_long_one_is_cut() -> None:
    def ink(caption: str) -> np.ndarray:
        left = label_grid(of([255, 255]), [caption, ""], [False, False], columns=2)
        return np.asarray((left == 0).all(axis=2))

    assert not ink("").any()
    short, long = ink("cat"), ink("a class whose name is by far too long for the width of its picture")
    assert short.any()
    assert not short[: 112 + 6].any(), "nothing is drawn over the picture"
    second_picture = 6 + 112 + 6 + 6
    assert long.any(axis=0).sum() > short.any(axis=0).sum()
    assert not long[:, second_picture:].any()


def test_large_pictures_are_made_smaller() -> None:
    assert label_grid(of([10], side=224), ["a"], [False], columns=4).shape[1] < 150
