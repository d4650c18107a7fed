"""Volume rendering against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from lrdiff.triplane.planes import Decoder, sample_planes
from lrdiff.triplane.volume import importance, inverse_cdf, march, merged, smoothed, stratified
from tests.lrdiff.triplane.tiny import TINY


@pytest.mark.parametrize("raw", [-1.0, 0.5, 4.0])
@pytest.mark.parametrize("count", [2, 7, 200])
def test_constant_density_stops_one_minus_exp_of_minus_sigma_length(raw: float, count: int) -> None:
    depths = torch.linspace(2.0, 3.5, count, dtype=torch.float64)
    colours = torch.full((count, 3), 0.25, dtype=torch.float64)
    seen = march(depths, torch.full((count,), raw, dtype=torch.float64), colours, white=False)
    stopped = 1 - math.exp(-math.log1p(math.exp(raw - 1)) * 1.5)
    assert float(seen.opacity) == pytest.approx(stopped, abs=1e-8)
    torch.testing.assert_close(seen.colours, torch.full((3,), 2 * 0.25 * stopped - 1, dtype=torch.float64))
    white = march(depths, torch.full((count,), raw, dtype=torch.float64), colours, white=True)
    expected = 2 * (0.25 * stopped + 1 - stopped) - 1
    torch.testing.assert_close(white.colours, torch.full((3,), expected, dtype=torch.float64))


def test_depth_of_constant_density_is_the_mean_of_a_truncated_exponential() -> None:
    depths = torch.linspace(2.0, 3.0, 4001, dtype=torch.float64)
    sigma = math.log1p(math.exp(2.0 - 1))
    seen = march(depths, torch.full((4001,), 2.0, dtype=torch.float64), torch.zeros(4001, 1).double(), white=False)
    expected = 2 + 1 / sigma - math.exp(-sigma) / (1 - math.exp(-sigma))
    assert float(seen.depth) == pytest.approx(expected, abs=1e-6)


def test_a_ray_that_hits_nothing_is_background_at_the_far_end() -> None:
    depths = torch.linspace(2.0, 3.0, 5)
    seen = march(depths, torch.full((5,), -200.0), torch.rand(5, 3), white=True)
    assert torch.equal(seen.colours, torch.ones(3))
    assert float(seen.depth) == 3.0
    assert float(seen.opacity) == 0.0


def test_a_wall_hides_what_is_behind_it() -> None:
    depths = torch.tensor([1.0, 2.0, 2.1, 3.0])
    sigma = torch.tensor([-100.0, 300.0, 300.0, 300.0])
    colours = torch.tensor([[0.0], [0.5], [0.5], [1.0]])
    seen = march(depths, sigma, colours, white=False)
    assert float(seen.weights[0]) == pytest.approx(1.0, abs=1e-5), "the interval before the wall holds half its density"


def test_depths_stay_in_their_cells_and_are_seeded() -> None:
    fixed = stratified(2.0, 4.0, 4, (1,), None)
    torch.testing.assert_close(fixed, torch.tensor([[2.25, 2.75, 3.25, 3.75]]))
    drawn = stratified(2.0, 4.0, 4, (1000,), torch.Generator().manual_seed(0))
    edges = torch.tensor([2.0, 2.5, 3.0, 3.5])
    assert bool((drawn >= edges).all())
    assert bool((drawn < edges + 0.5).all())
    assert torch.equal(drawn, stratified(2.0, 4.0, 4, (1000,), torch.Generator().manual_seed(0)))


def test_inverse_cdf_draws_the_piecewise_constant_distribution() -> None:
    edges, weights = torch.tensor([0.0, 1.0, 3.0, 4.0]), torch.tensor([1.0, 6.0, 3.0])
    uniform = torch.linspace(0, 1, 100_001)
    drawn = inverse_cdf(edges, weights, uniform)
    assert bool((drawn.diff() >= 0).all())
    share = torch.histogram(drawn, edges)[0] / len(drawn)
    torch.testing.assert_close(share, torch.tensor([0.1, 0.6, 0.3]), atol=1e-3, rtol=0)
    # The mean of the mixture of three uniforms.
    assert float(drawn.mean()) == pytest.approx(0.1 * 0.5 + 0.6 * 2 + 0.3 * 3.5, abs=1e-3)
    # Analytic quantiles.
    torch.testing.assert_close(
        inverse_cdf(edges, weights, torch.tensor([0.05, 0.4, 0.85])), torch.tensor([0.5, 2.0, 3.5])
    )


def test_empty_cells_are_never_drawn_from() -> None:
    edges = torch.arange(6.0)
    drawn = inverse_cdf(edges, torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0]), torch.rand(1000))
    assert bool(((drawn >= 2) & (drawn <= 3)).all())


def test_fine_samples_gather_where_the_first_pass_found_something() -> None:
    depths = torch.linspace(0, 1, 21)[None]
    weights = torch.zeros(1, 20)
    weights[0, 10] = 1.0
    fine = importance(depths, weights, 400, torch.Generator().manual_seed(0))
    inside = ((fine > depths[0, 9]) & (fine < depths[0, 12])).float().mean()
    # Smoothing spreads 1 over 0.5, 1, 0.5; the floor gives 0.01 to each of the 18 inner cells.
    assert float(inside) == pytest.approx((2 + 0.03) / (2 + 0.18), abs=0.03)
    assert bool(((fine >= depths[0, 1]) & (fine <= depths[0, -2])).all())


def test_smoothing_by_hand() -> None:
    torch.testing.assert_close(smoothed(torch.tensor([0.0, 0.4, 0.0])), torch.tensor([0.21, 0.41, 0.21]))


def test_two_passes_are_marched_as_one_in_order_of_depth() -> None:
    first = torch.tensor([[1.0, 3.0]]), torch.tensor([[10.0, 30.0]]), torch.tensor([[[1.0], [3.0]]])
    second = torch.tensor([[2.0, 0.5]]), torch.tensor([[20.0, 5.0]]), torch.tensor([[[2.0], [0.5]]])
    depths, sigma, colours = merged(first, second)
    assert depths.tolist() == [[0.5, 1.0, 2.0, 3.0]]
    assert sigma.tolist() == [[5.0, 10.0, 20.0, 30.0]]
    assert colours[..., 0].tolist() == [[0.5, 1.0, 2.0, 3.0]]


def test_planes_return_their_nodes_exactly() -> None:
    torch.manual_seed(0)
    side, box = 8, 1.6
    planes = torch.randn(1, 3, 5, side, side)
    node = lambda index: ((index + 0.5) / side * 2 - 1) * box / 2  # noqa: E731
    i, j, k = 2, 5, 6
    point = torch.tensor([[[node(i), node(j), node(k)]]])
    mean = (planes[0, 0, :, j, i] + planes[0, 1, :, k, i] + planes[0, 2, :, k, j]) / 3
    torch.testing.assert_close(sample_planes(planes, point, box, legacy_axes=False)[0, 0], mean)
    legacy = (planes[0, 0, :, j, i] + planes[0, 1, :, k, i] + planes[0, 2, :, i, k]) / 3
    torch.testing.assert_close(sample_planes(planes, point, box, legacy_axes=True)[0, 0], legacy)


def test_planes_are_bilinear_between_nodes_and_zero_outside() -> None:
    planes = torch.zeros(1, 3, 1, 4, 4)
    planes[0, 0, 0] = torch.arange(16.0).reshape(4, 4)
    # Halfway between the nodes in the middle: the mean of 5, 6, 9, 10.
    assert float(sample_planes(planes, torch.zeros(1, 1, 3), 1.0, False)) == pytest.approx(7.5 / 3)
    assert float(sample_planes(planes, torch.full((1, 1, 3), 0.7), 1.0, False)) == 0.0


def test_legacy_axes_ignore_y_on_the_third_plane_and_correct_ones_ignore_x() -> None:
    torch.manual_seed(1)
    planes = torch.randn(1, 3, 4, 8, 8)
    planes[:, :2] = 0
    points = (torch.rand(1, 50, 3) - 0.5) * 0.8

    def moved(axis: int, legacy: bool) -> bool:
        other = points.clone()
        other[..., axis] = other[..., axis].flip(1)
        return not torch.equal(*(sample_planes(planes, p, 1.0, legacy) for p in (points, other)))

    assert [moved(axis, True) for axis in range(3)] == [True, False, True]
    assert [moved(axis, False) for axis in range(3)] == [False, True, True]


def test_the_decoder_is_two_layers_with_a_softplus() -> None:
    torch.manual_seed(2)
    decoder = Decoder(TINY)
    x = torch.randn(3, TINY.features)
    first, last = decoder.net[0], decoder.net[2]
    hidden = torch.log1p(torch.exp(x @ first.weight.T / math.sqrt(TINY.features) + first.bias))
    out = hidden @ last.weight.T / math.sqrt(TINY.hidden) + last.bias
    sigma, colours = decoder(x)
    torch.testing.assert_close(sigma, out[:, 0])
    torch.testing.assert_close(colours, 1.002 / (1 + torch.exp(-out[:, 1:])) - 0.001)
