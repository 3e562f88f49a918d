"""The metric over freeze depth and learning rate."""

import numpy as np
import pytest

from thawline.reports.surface import Surface, fit_surface, surface_mesh

DEEPEST = 5


def bowl(depths: np.ndarray, log_rates: np.ndarray) -> np.ndarray:
    """Best at depth 3 and a learning rate of 1e-3."""
    values: np.ndarray = 0.9 - 0.02 * (depths - 3) ** 2 - 0.05 * (log_rates + 3) ** 2
    return values


def trials(count: int, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    depths, log_rates = generator.integers(0, DEEPEST + 1, count), generator.uniform(-4.5, -1.5, count)
    return depths, 10**log_rates, bowl(depths, log_rates) + noise * generator.normal(size=count)


def fitted(depths: np.ndarray, rates: np.ndarray, values: np.ndarray) -> Surface:
    surface = fit_surface(depths, rates, values, deepest=DEEPEST)
    assert surface is not None
    return surface


@pytest.mark.parametrize(("count", "noise", "error"), [(20, 0.0, 0.01), (60, 0.03, 0.03), (600, 0.03, 0.02)])
def test_a_bowl_is_found_again_through_noise(count: int, noise: float, error: float) -> None:
    surface = fitted(*trials(count, noise))
    truth = bowl(surface.depths[:, None], surface.log_rates[None])
    assert np.nanmax(np.abs(surface.values - truth)) < error
    depth, rate = np.unravel_index(np.nanargmax(surface.values), surface.values.shape)
    assert surface.depths[depth] == 3
    assert abs(surface.log_rates[rate] + 3) < 0.4


def test_noise_without_a_shape_is_drawn_flat() -> None:
    depths, rates, _ = trials(60)
    values = np.random.default_rng(1).normal(0.8, 0.05, 60)
    assert np.nanmax(np.abs(fitted(depths, rates, values).values - 0.8)) < 0.03  # the trials reach 0.12 from it
    assert np.ptp(values) > 0.2


def test_nothing_is_said_of_where_nothing_was_tried() -> None:
    depths, rates, values = trials(40)
    inside = (depths >= 1) & (depths <= 4) & ((depths < 3) | (rates > 1e-3))
    surface = fitted(depths[inside], rates[inside], values[inside])
    assert list(surface.depths) == [1, 2, 3, 4]
    assert surface.log_rates[0] == np.log10(rates[inside].min())
    assert surface.log_rates[-1] == pytest.approx(np.log10(rates[inside].max()))
    assert np.isnan(surface.values[3, 0])  # deep and slow
    assert np.isfinite(surface.values[0]).sum() > 10
    assert np.isfinite(fitted(depths, rates, values).values[4, 15])  # but where it was tried, something is


def test_the_trials_are_kept_as_measured_and_those_without_a_value_left_out() -> None:
    depths, rates, values = trials(20)
    values[3] = np.nan
    surface = fitted(depths, rates, values)
    assert np.array_equal(surface.trial_values, np.delete(values, 3))
    assert np.array_equal(surface.trial_depths, np.delete(depths, 3))
    assert np.allclose(10**surface.trial_log_rates, np.delete(rates, 3))


@pytest.mark.parametrize(
    ("depths", "rates"),
    [
        ([], []),
        ([0, 1, 2, 3, 4], [1e-4, 1e-2, 1e-4, 1e-2, 1e-4]),
        ([0, 5, 0, 5, 0, 5, 0, 5], [1e-4, 1e-2] * 4),
        ([2] * 8, [10.0**-i for i in range(1, 9)]),
        ([0, 1, 2, 3, 4, 5], [1e-3] * 6),
        ([0, 1, 2, 3, 4, 5], [10.0**-i for i in range(1, 7)]),
    ],
    ids=["none", "five", "two places", "one depth", "one rate", "one line"],
)
def test_too_little_to_say_anything_has_no_surface(depths: list[int], rates: list[float]) -> None:
    values = np.linspace(0.5, 0.9, len(depths))
    assert fit_surface(np.array(depths, int), np.array(rates), values, deepest=DEEPEST) is None


def test_equal_values_are_a_plane() -> None:
    depths, rates, values = trials(12)
    surface = fitted(depths, rates, np.full_like(values, 0.5))
    assert np.allclose(surface.values[np.isfinite(surface.values)], 0.5)
    assert np.isfinite(surface_mesh(surface).vertices).all()


def test_the_mesh_is_brightest_at_the_best_place_and_marks_every_trial() -> None:
    surface = fitted(*trials(30, noise=0.01))
    mesh = surface_mesh(surface)
    assert np.isfinite(mesh.vertices).all()
    assert set(mesh.faces.reshape(-1)) <= set(range(len(mesh.vertices)))
    sheet = int(np.isfinite(surface.values).sum())
    assert len(mesh.vertices) == sheet + 8 * (30 + 3)  # and three axes
    brightness = mesh.colours[:sheet].sum(axis=1)
    assert brightness[np.argmax(mesh.vertices[:sheet, 1])] > 0.99 * brightness.max()
    assert np.argmin(mesh.vertices[:sheet, 1]) in np.flatnonzero(brightness < np.quantile(brightness, 0.1))
    marks = mesh.vertices[sheet : sheet + 8 * 30].reshape(30, 8, 3).mean(axis=1)
    assert np.array_equal(np.argsort(marks[:, 1]), np.argsort(surface.trial_values))
    assert np.allclose(np.corrcoef(marks[:, 0], surface.trial_depths)[0, 1], 1)
    assert np.allclose(np.corrcoef(marks[:, 2], surface.trial_log_rates)[0, 1], 1)
