"""Every layer's arithmetic against a formula that is written another way."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lrdiff.triplane import functional as maths
from lrdiff.triplane.layers import Linear, StyledConv, ToColours
from lrdiff.triplane.synthesis import Superresolution
from tests.lrdiff.triplane.tiny import TINY, tiny

TAPS = [1 / 8, 3 / 8, 3 / 8, 1 / 8]


def correlate(image: list[list[float]], taps: list[list[float]]) -> list[list[float]]:
    """Correlate without padding, one number at a time."""
    side = len(taps)
    return [
        [
            sum(taps[a][b] * image[row + a][column + b] for a in range(side) for b in range(side))
            for column in range(len(image[0]) - side + 1)
        ]
        for row in range(len(image) - side + 1)
    ]


def spread(image: list[list[float]], before: int, after: int) -> list[list[float]]:
    """Insert zeros between pixels (none after the last) and pad with zeros."""
    height, width = 2 * len(image) - 1, 2 * len(image[0]) - 1
    wide = [[0.0] * (width + before + after) for _ in range(height + before + after)]
    for row, line in enumerate(image):
        for column, value in enumerate(line):
            wide[before + 2 * row][before + 2 * column] = value
    return wide


def low_pass() -> list[list[float]]:
    return [[4 * a * b for a in TAPS] for b in TAPS]


def slow_up_conv(x: Tensor, weight: Tensor, flip: bool) -> Tensor:
    """Zero-insert, pad 2, correlate with the spatially flipped weight, pad 1, low pass; sample by sample."""
    out = []
    for sample in x:
        channels = []
        for taps in weight.flip((2, 3)) if flip else weight:
            parts = [
                torch.tensor(correlate(spread(image.tolist(), 2, 2), tap.tolist()))
                for image, tap in zip(sample, taps, strict=True)
            ]
            summed = torch.nn.functional.pad(torch.stack(parts).sum(0), (1, 1, 1, 1))
            channels.append(torch.tensor(correlate(summed.tolist(), low_pass())))
        out.append(torch.stack(channels))
    return torch.stack(out)


def test_the_up_convolution_is_zero_insert_flipped_correlation_and_low_pass() -> None:
    torch.manual_seed(0)
    x, weight, style = torch.randn(2, 3, 4, 4), torch.randn(5, 3, 3, 3), torch.ones(2, 3)
    fast = maths.modulated_conv(x, weight, style, maths.fir_filter(), up=True, demodulate=False)
    assert fast.shape == (2, 5, 8, 8)
    torch.testing.assert_close(fast, slow_up_conv(x, weight, flip=True), atol=1e-5, rtol=1e-5)
    assert (fast - slow_up_conv(x, weight, flip=False)).abs().max() > 1, "the other orientation is another operation"


def test_the_skip_picture_is_zero_inserted_padded_and_filtered() -> None:
    torch.manual_seed(1)
    x = torch.randn(1, 1, 5, 5)
    # One zero follows the last pixel, then the padding: 2 left and top, 1 right and bottom.
    slow = correlate(spread(x[0, 0].tolist(), 2, 2), low_pass())
    torch.testing.assert_close(maths.upsampled(x, maths.fir_filter())[0, 0], torch.tensor(slow), atol=1e-5, rtol=1e-5)


def test_upsampling_keeps_a_constant_inside() -> None:
    inside = maths.upsampled(torch.full((1, 2, 6, 6), 0.7), maths.fir_filter())[..., 2:-2, 2:-2]
    torch.testing.assert_close(inside, torch.full_like(inside, 0.7))


@pytest.mark.parametrize("up", [False, True])
def test_modulation_is_a_convolution_with_each_samples_own_normalised_weight(up: bool) -> None:
    torch.manual_seed(2)
    x, weight, style = torch.randn(3, 4, 6, 6), torch.randn(5, 4, 3, 3), torch.randn(3, 4) + 1
    fast = maths.modulated_conv(x, weight, style, maths.fir_filter(), up=up)
    for sample in range(3):
        own = weight * style[sample][None, :, None, None]
        own = own / torch.sqrt((own**2).sum((1, 2, 3), keepdim=True) + 1e-8)
        plain = maths.modulated_conv(x[sample : sample + 1], own, torch.ones(1, 4), maths.fir_filter(), up, False)
        torch.testing.assert_close(fast[sample : sample + 1], plain, atol=1e-5, rtol=1e-4)


def test_demodulation_makes_the_output_of_white_noise_unit_variance() -> None:
    torch.manual_seed(3)
    x, weight = torch.randn(4, 16, 64, 64), 7 * torch.randn(8, 16, 3, 3)
    y = maths.modulated_conv(x, weight, 3 * torch.rand(4, 16) + 1, maths.fir_filter())
    assert y[..., 1:-1, 1:-1].std().item() == pytest.approx(1, abs=0.02)


def test_half_precision_cannot_overflow_where_demodulation_takes_the_scale_out() -> None:
    torch.manual_seed(4)
    x, weight, style = torch.randn(1, 8, 4, 4), torch.randn(4, 8, 3, 3), torch.randn(1, 8)
    full = maths.modulated_conv(x, weight, style, maths.fir_filter())
    half = maths.modulated_conv(x.half(), weight * 1e4, style * 1e4, maths.fir_filter())
    torch.testing.assert_close(half.float(), full, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("gain", [0.01, 1.0])
def test_equalised_learning_rate(gain: float) -> None:
    torch.manual_seed(5)
    layer = Linear(64, 3, gain=gain, bias=0.5)
    x = torch.randn(2, 64)
    slow = [
        [sum(a * b for a, b in zip(row, line, strict=True)) * gain / 8 + 0.5 * gain for line in layer.weight.tolist()]
        for row in x.tolist()
    ]
    torch.testing.assert_close(layer(x), torch.tensor(slow), atol=1e-5, rtol=1e-5)
    assert layer.weight.std().item() == pytest.approx(1 / gain, rel=0.2), "so that the effective weight starts the same"


def test_the_activation_has_slope_02_and_gain_sqrt_2() -> None:
    x = torch.tensor([-2.0, 0.0, 3.0])
    torch.testing.assert_close(maths.leaky(x), math.sqrt(2) * torch.tensor([-0.4, 0.0, 3.0]))


def test_noise_is_one_number_per_pixel_and_none_leaves_it_out() -> None:
    torch.manual_seed(6)
    layer = StyledConv(3, 4, 8, 6, up=False, noise=True)
    x, w = torch.randn(2, 3, 6, 6), torch.randn(2, 8)
    torch.testing.assert_close(layer(x, w, "const"), layer(x, w, "none"))
    torch.nn.init.constant_(layer.noise_strength, 0.3)
    convolved = maths.modulated_conv(x, layer.weight, layer.affine(w), maths.fir_filter())
    slow = maths.leaky(convolved + 0.3 * layer.get_buffer("noise_const")[None, None])
    torch.testing.assert_close(layer(x, w, "const"), slow)


def test_the_projection_to_colours_scales_its_style_and_does_not_demodulate() -> None:
    torch.manual_seed(7)
    layer = ToColours(9, 2, 8)
    x, w = torch.randn(2, 9, 3, 3), torch.randn(2, 8)
    slow = torch.einsum("bihw,bi,oi->bohw", x, layer.affine(w) / 3, layer.weight[:, :, 0, 0])
    torch.testing.assert_close(layer(x, w), slow)


def test_each_block_takes_the_latents_that_start_at_0_1_3() -> None:
    """Change one latent at a time and look at which planes' resolutions it reaches first."""
    generator = tiny()
    synthesis = generator.backbone.synthesis
    seen: dict[str, set[int]] = {}
    for number in range(TINY.latents):
        ws = torch.zeros(1, TINY.latents, TINY.w)
        ws[:, number] = 1.0
        for name, layer in synthesis.named_modules():
            if name.endswith("affine"):
                layer.register_forward_hook(
                    lambda _m, inputs, _o, name=name, number=number: (
                        seen.setdefault(name, set()).add(number) if bool(inputs[0].any()) else None
                    )
                )
        synthesis(ws)
        for layer in synthesis.modules():
            layer._forward_hooks.clear()
    # fmt: off
    assert seen == {
        "b4.conv1.affine": {0}, "b4.torgb.affine": {1},
        "b8.conv0.affine": {1}, "b8.conv1.affine": {2}, "b8.torgb.affine": {3},
        "b16.conv0.affine": {3}, "b16.conv1.affine": {4}, "b16.torgb.affine": {5},
    }
    # fmt: on


def test_superresolution_reads_only_the_last_latent() -> None:
    assert TINY.superres is not None
    torch.manual_seed(8)
    module = Superresolution(TINY.superres, TINY.colours, TINY.w)
    features, ws = torch.randn(1, TINY.colours, 8, 8), torch.randn(1, TINY.latents, TINY.w)
    picture = module(features, ws)
    assert picture.shape == (1, 3, 32, 32)
    other = ws.clone()
    other[:, :-1] += 1
    assert torch.equal(module(features, other), picture)
    other = ws.clone()
    other[:, -1] += 1
    assert not torch.equal(module(features, other), picture)
