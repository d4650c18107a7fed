"""LPIPS from a file of the user's: its formula, its gradient, and files that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from lrdiff.errors import ConfigError, ShapeError
from lrdiff.lpips import load_lpips
from tests.networks import lpips_state, write


def by_hand(state: dict[str, Tensor], one: Tensor, other: Tensor, kind: str) -> float:
    """The distance of one pair [3, H, W], layer by layer as torchvision's networks are drawn, summed in loops."""
    alex = [("c", 1, 0), "r", "t", "p3", ("c", 2, 3), "r", "t", "p3", ("c", 3, 6), "r", "t"]
    alex += [("c", 4, 8), "r", "t", ("c", 5, 10), "r", "t"]
    vgg = [("c", 1, 0), "r", ("c", 1, 2), "r", "t", "p2", ("c", 2, 5), "r", ("c", 2, 7), "r", "t", "p2"]
    for slice_, places in ((3, (10, 12, 14)), (4, (17, 19, 21)), (5, (24, 26, 28))):
        for place in places:
            vgg += [("c", slice_, place), "r"]
        vgg += ["t", "p2"]
    shift, scale = torch.tensor([-0.03, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.45])
    xs = [((image - shift[:, None, None]) / scale[:, None, None])[None] for image in (one, other)]
    total, layer = 0.0, 0
    for step in alex if kind == "alex" else vgg:
        if isinstance(step, tuple):
            name = f"net.slice{step[1]}.{step[2]}"
            stride, pad = (4, 2) if name == "net.slice1.0" and kind == "alex" else (1, None)
            weight = state[f"{name}.weight"]
            pad = weight.shape[-1] // 2 if pad is None else pad
            xs = [functional.conv2d(x, weight, state[f"{name}.bias"], stride, pad) for x in xs]
        elif step == "r":
            xs = [x.clamp_min(0) for x in xs]
        elif step == "t":
            f, g = (x[0] / x[0].norm(dim=0).clamp_min(1e-10) for x in xs)
            v = state[f"lin{layer}.model.1.weight"].flatten()
            places = [(i, j) for i in range(f.shape[1]) for j in range(f.shape[2])]
            total += sum(float((v * (f[:, i, j] - g[:, i, j]) ** 2).sum()) for i, j in places) / len(places)
            layer += 1
        else:
            xs = [functional.max_pool2d(x, int(step[1]), 2) for x in xs]
    return total


@pytest.mark.parametrize("kind", ["alex", "vgg"])
def test_the_distance_is_the_published_one(kind: str, tmp_path: Path) -> None:
    state = lpips_state(kind)
    distance = load_lpips(write(tmp_path / "lpips.pth", state))
    assert distance.kind == kind
    pictures = torch.rand(2, 2, 3, 40, 33, generator=torch.Generator().manual_seed(1)) * 2 - 1
    expected = [by_hand(state, one, other, kind) for one, other in zip(*pictures, strict=True)]
    assert distance(*pictures).tolist() == pytest.approx(expected, rel=1e-4)
    assert distance(pictures[0], pictures[0]).tolist() == [0, 0]
    state |= {f"lins.{n}.model.1.weight": state[f"lin{n}.model.1.weight"].clone() for n in range(5)}
    save_file(state, tmp_path / "lpips.safetensors")
    again = load_lpips(tmp_path / "lpips.safetensors")
    assert torch.equal(again(*pictures), distance(*pictures)), "newer editions of the package name some tensors twice"


def test_the_gradient_is_finite_where_a_picture_is_even(tmp_path: Path) -> None:
    distance = load_lpips(write(tmp_path / "lpips.pth", lpips_state()))
    one = torch.zeros(1, 3, 32, 32, requires_grad=True)
    distance(one, torch.rand(1, 3, 32, 32)).sum().backward()
    assert one.grad is not None
    assert bool(one.grad.isfinite().all())
    assert float(one.grad.abs().max()) > 0
    assert not any(p.requires_grad for p in distance.parameters())
    with pytest.raises(ShapeError, match="32 pixels or more"):
        distance(torch.zeros(1, 3, 31, 32), torch.zeros(1, 3, 31, 32))


def test_files_that_are_no_lpips_are_refused(tmp_path: Path) -> None:
    supply = r"give the state dict of lpips\.LPIPS"
    with pytest.raises(ConfigError, match=f"no such file; {supply}"):
        load_lpips(tmp_path / "absent.pth")
    for words in ("no weights", "hello"):
        (tmp_path / "text.pth").write_text(words)
        with pytest.raises(ConfigError, match=f"cannot be read as weights alone.*{supply}"):
            load_lpips(tmp_path / "text.pth")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(ConfigError, match="are not run"):
        load_lpips(tmp_path / "module.pth")
    with pytest.raises(ConfigError, match=r"module\.pth") as caught:
        load_lpips(tmp_path / "module.pth")
    assert "weights_only=False" not in str(caught.value), "no advice to unpickle what is not trusted"
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ConfigError, match="holds no tensors by name"):
        load_lpips(tmp_path / "list.pth")
    state = lpips_state()
    del state["lin3.model.1.weight"]
    with pytest.raises(ConfigError, match=r"it has no tensor lin3\.model\.1\.weight"):
        load_lpips(write(tmp_path / "part.pth", state))
    state = lpips_state() | {"net.slice2.3.weight": torch.zeros(6, 5, 5, 5)}
    with pytest.raises(ConfigError, match="does not go with 6 channels"):
        load_lpips(write(tmp_path / "wrong.pth", state))
