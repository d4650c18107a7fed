"""What is maximised: how rewards are written, added up, bounded and checked."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lrdiff.alignprop.build import build, colours
from lrdiff.alignprop.diversity import diversity
from lrdiff.alignprop.objective import Bound, Objective, Term, to_unit
from lrdiff.alignprop.prompt_match import PromptMatch, named, share_right
from lrdiff.alignprop.specs import Spec, parse
from lrdiff.errors import ConfigError, DataError, LrdiffError, NonFiniteError, ShapeError
from lrdiff.probe import load_probe
from lrdiff.rng import stream
from lrdiff.world.captions import caption, held_out_captions
from lrdiff.world.render import render
from lrdiff.world.toys import sample_scenes

CPU = torch.device("cpu")


def mean(images: Tensor, prompts: object) -> Tensor:
    return images.mean((1, 2, 3))


def pictures(count: int = 3) -> Tensor:
    levels = torch.linspace(0.2, 0.8, count, dtype=torch.float64)
    return levels[:, None, None, None].expand(count, 3, 8, 8).clone()


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("brightness", Spec("brightness", "", 1.0)),
        ("contrast:-0.5", Spec("contrast", "", -0.5)),
        ("likeness=a:b/c.png:2", Spec("likeness", "a:b/c.png", 2.0)),
        ("likeness=a:b/c.png", Spec("likeness", "a:b/c.png", 1.0)),
        ("palette=#ff0000,#00ff00:3", Spec("palette", "#ff0000,#00ff00", 3.0)),
    ],
)
def test_a_reward_is_read(text: str, spec: Spec) -> None:
    assert parse(text) == spec


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("niceness", "'niceness' is unknown; known: brightness, "),
        ("brightness:0", "a weight of 0 says nothing"),
        ("brightness:nan", "a weight of nan"),
        ("brightness=3", "brightness takes nothing behind '='"),
        ("likeness", "likeness needs a picture's file behind '='"),
        ("aesthetic=clip", "aesthetic needs a folder of CLIP"),
        ("", "'' is unknown"),
    ],
)
def test_a_wrong_reward_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem.replace("(", r"\(")):
        parse(text)


@pytest.mark.parametrize("text", ["palette=red", "likeness=nothing.png", "ratings=nothing", "prompt-match=probe-z"])
def test_what_cannot_be_built_is_told(text: str) -> None:
    with pytest.raises(LrdiffError, match=r"red|nothing|probe-z"):
        build(parse(text), CPU)


def test_colours_are_read() -> None:
    assert torch.allclose(colours("#ff0000,#0080ff"), torch.tensor([[1, 0, 0], [0, 128 / 255, 1]]))


@pytest.mark.parametrize(
    ("bound", "expected", "slopes"),
    [("none", [-0.2, -0.5, -0.8], [-1, -1, -1]), ("relu", [0.4, 0.1, 0.0], [-1, -1, 0]),
     ("distance", [0.4, 0.1, 0.2], [-1, -1, 1])],
)  # fmt: skip
def test_a_bounded_loss_ends_at_its_target(bound: Bound, expected: list[float], slopes: list[int]) -> None:
    images = pictures().requires_grad_()
    losses, scores = Objective([Term("mean", mean, target=0.6)], bound)(images, ["a"] * 3)
    assert torch.allclose(losses, torch.tensor(expected, dtype=torch.float64))
    assert torch.allclose(scores["mean"], torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64))
    losses.sum().backward()
    assert images.grad is not None
    assert torch.allclose(images.grad.sum((1, 2, 3)), torch.tensor(slopes, dtype=torch.float64))


def test_rewards_are_weighted_in_units_of_their_spread() -> None:
    terms = [Term("mean", mean, weight=2.0), Term("large", lambda x, p: -1000 * mean(x, p), weight=0.5)]
    objective = Objective(terms)
    objective.normalise(pictures(), ["a"] * 3)
    assert [term.scale for term in terms] == pytest.approx([0.3, 300.0])
    losses, _ = objective(pictures(), ["a"] * 3)
    assert torch.allclose(losses, (-2.0 + 0.5) * torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64) / 0.3)


def test_a_reward_without_spread_has_no_unit() -> None:
    with pytest.raises(ConfigError, match="reward flat gives all 3 pictures"):
        Objective([Term("flat", lambda x, p: 0 * mean(x, p))]).normalise(pictures(), ["a"] * 3)


def test_the_same_reward_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="each once"):
        Objective([Term("a", mean), Term("a", mean)])


@pytest.mark.parametrize(
    ("reward", "error", "problem"),
    [
        (lambda x, p: mean(x, p) * float("nan"), NonFiniteError, "reward odd returned .*nan"),
        (lambda x, p: x.mean(), ShapeError, r"reward odd returned shape \[\] for 3 images"),
        (lambda x, p: mean(x, p)[:, None], ShapeError, r"reward odd returned shape \[3, 1\]"),
        (lambda x, p: mean(x, p).detach(), ConfigError, "reward odd has no gradient"),
    ],
)
def test_a_bad_reward_is_named(reward: object, error: type[LrdiffError], problem: str) -> None:
    with pytest.raises(error, match=problem):
        Objective([Term("odd", reward)])(pictures().requires_grad_(), ["a"] * 3)  # pyright: ignore[reportArgumentType]


def test_images_reach_rewards_in_their_range() -> None:
    images = torch.tensor([-1.2, -1.0, 0.0, 1.0, 1.4]).requires_grad_()
    hard, soft = to_unit(images), to_unit(images, straight_through=True)
    assert torch.allclose(hard, torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))
    assert torch.allclose(soft, hard)
    (inside,) = torch.autograd.grad(hard.sum(), images)
    assert inside.tolist()[0] == inside.tolist()[-1] == 0.0
    (everywhere,) = torch.autograd.grad(soft.sum(), images)
    assert torch.equal(everywhere, torch.full_like(images, 0.5))


def test_diversity_is_zero_for_equal_pictures_and_one_for_black_and_white() -> None:
    flat = torch.zeros(2, 3, 3, 32, 32)
    assert diversity(flat) == 0.0
    flat[:, 1:] = 1.0
    assert diversity(flat) == pytest.approx(2 / 3)  # two pairs of three
    noise = torch.rand(1, 2, 3, 128, 128, generator=stream(0, "n"))
    assert diversity(noise) < 0.1, "fine noise is no diversity"
    with pytest.raises(ShapeError):
        diversity(torch.zeros(2, 1, 3, 8, 8))


def test_captions_are_read_as_they_were_written() -> None:
    for text, labels in held_out_captions(40, 5):
        assert named(text) | {"pattern": labels["pattern"]} == labels
    for number, scene in enumerate(sample_scenes(3, range(40), objects="single")):
        main, text = scene.objects[0], caption(scene, stream(3, "c", number))
        truth = {"shape": main.shape, "colour": main.colour, "pattern": main.pattern, "material": main.material,
                 "place": scene.place}  # fmt: skip
        assert named(text).items() <= truth.items(), text
    with pytest.raises(DataError, match="names nothing"):
        named("hello there")


def test_only_the_main_object_is_read() -> None:
    assert named("a red ball to the left of a blue cube") == {"shape": 0, "colour": 0}


def test_prompt_match_prefers_what_is_seen() -> None:
    pairs = held_out_captions(8, 5)
    images = render(sample_scenes(5, range(8), objects="single", held_out=True)).images / 2 + 0.5
    texts = [text for text, _ in pairs]
    probe = load_probe("probe-a")
    right, wrong = (PromptMatch(probe)(images, order) for order in (texts, texts[1:] + texts[:1]))
    assert float(right.max()) <= 0.0
    assert float(right.mean()) > float(wrong.mean()) + 1.0
    assert share_right(probe, images, texts) > share_right(probe, images, texts[1:] + texts[:1]) + 0.3
