"""Error rates of the gate: recall of a single class, int8 copies, and many nights on the same test images.

Models are simulated like two trainings of one recipe: four in five images are easy (0.985 correct), the others hard
(0.3 correct), 85 % in total, and two trainings differ on 10 % of the images.
"""

import argparse
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from thawline.config import GateRules
from thawline.registry.gate import RECALL_BY_CHANCE
from thawline.registry.statistics import paired_bootstrap, worst_recall_loss

EASY, HARD, SHARE = 0.985, 0.3, 0.2
RULES = GateRules()

Bools = npt.NDArray[np.bool_]


def main() -> None:
    """Simulate, and print three tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--challengers", type=int, default=400, help="number per row of the first two tables")
    parser.add_argument("--years", type=int, default=200, help="simulated years per row of the last table")
    parser.add_argument("--nights", type=int, default=300)
    parser.add_argument("--images", type=int, nargs="+", default=[200, 1000], help="of the test split, last table")
    options = parser.parse_args()
    recalls(options.challengers)
    copies(options.challengers)
    nights(options.years, options.nights, options.images)


def recalls(challengers: int) -> None:
    """How often the recall of a class stops a challenger, whether it has really decreased or not."""
    print(f"Stopped by the recall of every class, of {challengers} challengers each:\n")
    print("| classes | images of each | as good | 3 points better | the same, as measured | one class 20 worse |")
    print("|---|---|---|---|---|---|")
    for classes, images in (
        (2, 10), (2, 100), (5, 20), (10, 100), (30, 100), (100, 20), (100, 100), (200, 50), (300, 100), (1000, 20),
        (1000, 100),
    ):  # fmt: skip
        random = np.random.default_rng(0)
        rows = [
            [stopped(random, classes, images, gain, fall) for _ in range(challengers)]
            for gain, fall in ((0.0, 0.0), (0.03, 0.0), (0.0, 0.2))
        ]
        equal, better, fallen = (np.mean([by_chance for by_chance, _ in row]) for row in rows)
        measured = np.mean([as_measured for _, as_measured in rows[1]])
        print(f"| {classes} | {images} | {equal:.1%} | {better:.1%} | {measured:.1%} | {fallen:.1%} |", flush=True)


def stopped(random: np.random.Generator, classes: int, images: int, gain: float, fall: float) -> tuple[bool, bool]:
    """Whether the criterion stops a challenger, and whether the plain tolerance would, without accounting for chance.

    Args:
        random: random generator.
        classes: number of classes.
        images: number of images per class.
        gain: true gain of the challenger in every class.
        fall: true loss in the first class.
    """
    labels = np.repeat(np.arange(classes), images)
    hard = random.random(labels.size) < SHARE
    champion, challenger = (answers(random, hard, each) for each in (0.0, gain))
    challenger &= (labels > 0) | (random.random(labels.size) > fall / (EASY * (1 - SHARE) + HARD * SHARE))
    ours, theirs = (np.where(right, labels, (labels + 1) % classes) for right in (challenger, champion))
    worst = worst_recall_loss(labels, ours, theirs, tolerated=RULES.max_recall_loss)
    lost = np.bincount(labels, champion) - np.bincount(labels, challenger)
    return worst.p_value <= RECALL_BY_CHANCE, bool((lost > max(RULES.max_recall_loss * images, 1)).any())


def copies(count: int) -> None:
    """How often a copy is accepted by the gate's bound, which assumes one more lost image, and by one without that."""
    print(f"\nCopies in int8 that are shown to lose less than {RULES.max_quantisation_loss:g}, of {count} each:\n")
    print("| test images | loses nothing, no answer differs | loses 0.002, one answer in 100 differs "
          "| loses 0.01, one answer in 100 differs | the same, without the image |")  # fmt: skip
    print("|---|---|---|---|---|")
    for images in (100, 200, 300, 1000, 5000):
        random, row = np.random.default_rng(0), []
        for loss, differing, assumed in ((0, 0, 1), (0.002, 0.01, 1), (0.01, 0.01, 1), (0.01, 0.01, 0)):
            shares = [(differing + loss) / 2, (differing - loss) / 2, 1 - differing]
            drawn = random.multinomial(images, shares, size=count)
            row.append(np.mean([good_enough(int(lost), int(gained), images, assumed) for lost, gained, _ in drawn]))
        print(f"| {images} | {' | '.join(f'{share:.0%}' for share in row)} |", flush=True)


@cache
def good_enough(lost: int, gained: int, images: int, assumed: int) -> bool:
    """The gate's decision for a copy that is correct on ``gained`` more images and on ``lost`` fewer others."""
    ours, theirs = np.zeros((2, images + assumed), dtype=np.int64)
    theirs[:gained] = 1
    ours[gained : gained + lost + assumed] = 1
    gain = paired_bootstrap("accuracy", np.zeros(images + assumed, dtype=np.int64), ours, theirs)
    return gain.lower(RULES.significance) > -RULES.max_quantisation_loss


def nights(years: int, count: int, sizes: Sequence[int]) -> None:
    """One challenger every night on the same test images."""
    print(f"\nAfter this many nights with an equally good challenger, {years} simulations each; "
          f"`{RULES.significance:g} / nights` divides the error rate among the nights:\n")  # fmt: skip
    print("| test images | significance | night | promoted | independent nights would | champion measured too good by "
          "| promoted if 3 points better | promoted if 1 point worse |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    shown = [night for night in (1, 10, 30, 100, 300, 1000) if night <= count]
    for images in sizes:
        for shared in (False, True):
            seen = np.array([year(np.random.default_rng(seed), images, shown, shared=shared) for seed in range(years)])
            name = f"{RULES.significance:g}{' / nights' if shared else ''}"
            for night, (promoted, surplus, better, worse) in zip(shown, seen.mean(0), strict=True):
                independent = f"{RULES.significance * night:.2f}" if not shared else ""
                print(f"| {images} | {name} | {night} | {promoted:.2f} | {independent} | {surplus:+.3f} | {better:.0%} "
                      f"| {worse:.1%} |", flush=True)  # fmt: skip


def year(random: np.random.Generator, images: int, shown: Sequence[int], *, shared: bool) -> list[list[float]]:
    """For each shown night: number of replaced champions, by how much the champion's measured accuracy exceeds its true
    one, and how often models 3 points better and 1 point worse would be promoted."""
    hard = random.random(images) < SHARE
    true = np.where(hard, HARD, EASY).mean()
    champion, replaced, seen = answers(random, hard, 0.0), 0, []
    for night in range(1, max(shown) + 1):
        significance = round(RULES.significance / night, 6) if shared else RULES.significance
        challenger = answers(random, hard, 0.0)
        if promoted(challenger, champion, significance):
            champion, replaced = challenger, replaced + 1
        if night in shown:
            tried = [
                np.mean([promoted(answers(random, hard, gain), champion, significance) for _ in range(10)])
                for gain in (0.03, -0.01)
            ]
            seen.append([replaced, float(champion.mean() - true), *map(float, tried)])
    return seen


def answers(random: np.random.Generator, hard: Bools, gain: float) -> Bools:
    """Correct images ``[N]`` of a model that is better than the recipe's by ``gain``, on hard images."""
    right: Bools = random.random(hard.size) < np.where(hard, HARD + gain / SHARE, EASY)
    return right


def promoted(challenger: Bools, champion: Bools, significance: float) -> bool:
    """Whether the gate finds a significant gain in accuracy."""
    gained, lost = int((challenger & ~champion).sum()), int((champion & ~challenger).sum())
    return gained > lost and beyond_chance(gained, lost, challenger.size, significance)


@cache
def beyond_chance(gained: int, lost: int, images: int, significance: float) -> bool:
    """The gate's decision for a challenger that is correct on ``gained`` more images and on ``lost`` fewer others."""
    ours, theirs = np.zeros((2, images), dtype=np.int64)
    theirs[:gained] = 1
    ours[gained : gained + lost] = 1
    return paired_bootstrap("accuracy", np.zeros(images, dtype=np.int64), ours, theirs).lower(significance) > 0


if __name__ == "__main__":
    main()
