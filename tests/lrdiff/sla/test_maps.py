"""Block maps of real models: they are the router's answer to what the layer sees, and leave the model as it was."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lrdiff import backbones
from lrdiff.backbones import Backbone
from lrdiff.errors import ConfigError, TargetError
from lrdiff.rng import stream
from lrdiff.sampling import ddim
from lrdiff.sla import route
from lrdiff.sla.map_picture import COLORS, head_pictures, map_picture
from lrdiff.sla.maps import LayerMap, block_maps, layer_tokens
from lrdiff.sla.models import processors, replaceable
from lrdiff.sla.settings import SlaSettings
from tests.lrdiff.backbones.families import build_pixart, build_sd3
from tests.tiny import build_tiny_model

SETTINGS = SlaSettings(topk=0.25, skip=0.25, block_q=16, block_k=16)
PROMPT = "a photo of a red cube"


@pytest.fixture(scope="module")
def pixart(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """Return a tiny transformer: 64 tokens at its own size."""
    return backbones.load(build_pixart(tmp_path_factory.mktemp("pixart") / "dit"))


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """Return a tiny UNet, whose layers differ in length."""
    return backbones.load(build_tiny_model(tmp_path_factory.mktemp("unet") / "tiny", resolution=64))


@pytest.fixture(params=["pixart", "unet"])
def model(request: pytest.FixtureRequest) -> Backbone:
    return request.getfixturevalue(request.param)


@torch.no_grad()
def seen_by_hand(backbone: Backbone, layer: str, last: int, steps: int, guidance: float) -> tuple[Tensor, Tensor]:
    """Return queries and keys [1, H, L, D] of the conditional sample at step `last`, heard at the plain layers."""
    heard: dict[str, Tensor] = {}
    attention = replaceable(backbone.denoiser)[layer][0]
    hooks = [
        getattr(attention, name).register_forward_hook(lambda _, __, out, name=name: heard.update({name: out[-1:]}))
        for name in ("to_q", "to_k")
    ]
    x = torch.randn((1, *backbone.latent_shape), generator=stream(3, "latents"))
    cond, uncond = backbone.condition([PROMPT]), backbone.condition([""])
    times = backbone.schedule.timesteps(steps)[: last + 1]
    ddim(backbone.predict, x, cond, None if guidance == 1 else uncond, backbone.schedule, times, guidance)
    for hook in hooks:
        hook.remove()
    q, k = (heard[name].unflatten(2, (attention.heads, -1)).transpose(1, 2) for name in ("to_q", "to_k"))
    return q, k


@pytest.mark.parametrize(("at", "last", "guidance"), [(0.0, 0, 5.0), (0.5, 2, 5.0), (1.0, 4, 1.0)])
def test_a_map_is_the_routers_answer_to_what_the_layer_sees(
    model: Backbone, at: float, last: int, guidance: float
) -> None:
    maps = block_maps(model, PROMPT, SETTINGS, seed=3, at=at, steps=5, guidance=guidance)
    assert list(maps) == list(replaceable(model.denoiser))
    for layer, found in maps.items():
        q, k = seen_by_hand(model, layer, last, 5, guidance)
        by_hand = route(q, k, **SETTINGS.router()).classes[0]
        assert (found.classes.dtype, found.tokens, found.text) == (torch.int8, q.shape[2], 0)
        torch.testing.assert_close(found.classes, by_hand)


def test_the_step_the_prompt_and_the_seed_decide_it(pixart: Backbone) -> None:
    layer = list(replaceable(pixart.denoiser))[-1]

    def made(prompt: str = PROMPT, seed: int = 0, at: float = 0.5) -> Tensor:
        return block_maps(pixart, prompt, SETTINGS, [layer], seed=seed, at=at, steps=4)[layer].classes

    assert torch.equal(made(), made())
    others = [made(seed=1), made(seed=2), made(at=0.0), made(at=1.0)]
    assert not any(torch.equal(made(), other) for other in others)


def test_shares_add_up_and_are_those_asked_for(pixart: Backbone) -> None:
    layer = next(iter(replaceable(pixart.denoiser)))
    [found] = block_maps(pixart, PROMPT, SETTINGS, [layer], steps=2).values()
    assert found.shares == {"critical": 0.25, "marginal": 0.5, "negligible": 0.25}
    rows = found.classes.shape[:2]
    assert torch.equal((found.classes == 1).sum(-1), torch.ones(rows, dtype=torch.int64))
    odd = block_maps(pixart, PROMPT, SlaSettings(topk=0.3, skip=0.34, block_q=16, block_k=16), steps=2)
    assert all(sum(found.shares.values()) == pytest.approx(1.0) for found in odd.values())


@pytest.mark.parametrize("scope", ["noncritical", "all"])
def test_where_nothing_is_skipped_nothing_is_negligible(pixart: Backbone, scope: str) -> None:
    settings = SlaSettings(topk=0.25, skip=0.25, block_q=16, block_k=16, scope=scope)  # pyright: ignore[reportArgumentType]
    for found in block_maps(pixart, PROMPT, settings, steps=2).values():
        assert found.shares == {"critical": 0.25, "marginal": 0.75, "negligible": 0.0}


def test_a_larger_picture_has_more_tokens(pixart: Backbone) -> None:
    wide = block_maps(pixart, PROMPT, SETTINGS, steps=2, width=64, height=32)
    assert layer_tokens(pixart) == dict.fromkeys(wide, 64)
    assert {found.tokens for found in wide.values()} == {128}
    assert {found.classes.shape[1:] for found in wide.values()} == {(8, 8)}


def test_text_is_always_critical(tmp_path: Path) -> None:
    backbone = backbones.load(build_sd3(tmp_path / "sd3"))
    for found in block_maps(backbone, PROMPT, SETTINGS, steps=2, guidance=1.0, width=64, height=64).values():
        whole = found.tokens // 16
        if found.text:
            assert bool((found.classes[:, whole:] == 1).all())
            assert bool((found.classes[..., whole:] == 1).all())
        assert bool((found.classes[:, :whole, :whole] == -1).any())


def test_a_wrong_layer_is_refused_with_those_that_there_are(unet: Backbone) -> None:
    with pytest.raises(TargetError) as error:
        block_maps(unet, PROMPT, SETTINGS, ["mid_block.nothing"])
    assert "mid_block.nothing" in str(error.value)
    assert all(name in str(error.value) for name in replaceable(unet.denoiser))
    with pytest.raises(ConfigError, match=r"at = 1\.5 is outside 0"):
        block_maps(unet, PROMPT, SETTINGS, at=1.5)


def test_the_model_is_given_back_as_it_was(pixart: Backbone) -> None:
    x = torch.randn((1, *pixart.latent_shape), generator=stream(0, "x"))

    def out() -> Tensor:
        with torch.no_grad():
            return pixart.predict(x, torch.tensor([300]), pixart.condition([PROMPT]))

    before, kinds = out(), {name: layer.processor for name, (layer, _) in replaceable(pixart.denoiser).items()}
    block_maps(pixart, PROMPT, SETTINGS, steps=2)
    with pytest.raises(ConfigError):
        block_maps(pixart, PROMPT, SETTINGS, steps=0)
    assert not list(processors(pixart.denoiser))
    assert all(layer.processor is kinds[name] for name, (layer, _) in replaceable(pixart.denoiser).items())
    assert torch.equal(out(), before)


def test_pictures_show_every_block_in_its_colour() -> None:
    classes = torch.randint(-1, 2, (6, 3, 5), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    found = LayerMap(classes, 80, 0, SETTINGS)
    kinds = {1: "critical", 0: "marginal", -1: "negligible"}
    pictures = head_pictures(found, side=50)
    assert [picture.size for picture in pictures] == [(50, 30)] * 6
    for head, row, column in itertools.product(range(6), range(3), range(5)):
        shown = pictures[head].getpixel((column * 10 + 9, row * 10))
        assert "#" + bytes(shown).hex() == COLORS[kinds[int(classes[head, row, column])]]  # pyright: ignore[reportArgumentType]
    whole = map_picture(found)
    assert {tuple(bytes.fromhex(color[1:])) for color in COLORS.values()} <= {
        color for _, color in whole.getcolors(10**6) or ()
    }


def test_colours_differ_in_lightness_too() -> None:
    def light(color: str) -> float:
        parts = [part / 255 for part in bytes.fromhex(color[1:])]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05

    dark, middle, bright = map(light, COLORS.values())
    assert min(middle / dark, bright / middle) >= 3
