"""A mark put into a decoder is read from the file it makes; doubt and bad input never end in "detected"."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from lrdiff.errors import ConfigError, DataError, LrdiffError, ModelError
from lrdiff.images import to_image
from lrdiff.watermark import default_lora_config, fuse, new_key, reading, verifier, verify
from lrdiff.watermark.calibration import Calibration
from lrdiff.watermark.extractor import Extractor, load
from lrdiff.watermark.verdict import decide

GOOD = Calibration({"random": 1000}, (0.0,), (0.5,), 0.0, 0.0, 0.0, 0.0)


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


def photo(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def read(extractor: Extractor, data: bytes) -> str:
    return verify(data, "0" * extractor.bits, extractor=extractor).read


def build_vae() -> AutoencoderKL:
    torch.manual_seed(2)
    vae = AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
    )
    return vae.requires_grad_(False).eval()


def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    return vae.decode(latents).sample  # pyright: ignore[reportAttributeAccessIssue]


def test_from_key_to_verdict(extractor: Extractor) -> None:
    vae = build_vae()
    key = "110100111010010110001101"
    wanted = torch.tensor([float(bit) for bit in key]).expand(2, -1)
    latents = torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        plain = decode(vae, latents)
    vae.add_adapter(default_lora_config(vae))
    parameters = [p for p in vae.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=5e-3)
    for _ in range(300):
        marked = decode(vae, latents).clamp(-1, 1)
        logits = extractor(marked)
        if bool(((2 * wanted - 1) * logits > 0.5).all()):
            break
        optimiser.zero_grad()
        F.binary_cross_entropy_with_logits(2 * logits, wanted).backward()
        optimiser.step()
    fuse(vae)
    with torch.no_grad():
        files = [encoded(to_image(picture)) for picture in decode(vae, latents)]
    for data in files:
        found = verify(data, key, extractor=extractor)
        assert (found.verdict, found.matches, found.bits, found.threshold) == ("detected", 24, 24, 24)
        assert found.read == key
        assert (found.p_value, found.p_corrected) == pytest.approx((2.0**-24,) * 2, rel=1e-9)
        assert found.soft_p_value <= 1e-6
        many = verify(data, [*(new_key(24) for _ in range(9)), key], alpha=1e-4, extractor=extractor, search=True)
        assert (many.verdict, many.key, many.keys, many.searches) == ("detected", 9, 10, 49)
        assert many.p_corrected == pytest.approx(490 * 2.0**-24, rel=1e-4)
    for picture in plain:
        assert verify(encoded(to_image(picture)), key, extractor=extractor).verdict == "not detected"


def test_a_picture_without_the_mark(extractor: Extractor) -> None:
    data = encoded(photo())
    key = read(extractor, data)
    half = "".join(bit if i % 2 else "10"[int(bit)] for i, bit in enumerate(key))
    found = verify(data, half, extractor=extractor)
    assert (found.verdict, found.matches) == ("not detected", 12)
    assert "does not tell" in found.reason
    assert found.sha256 == hashlib.sha256(data).hexdigest()
    assert found.extractor == extractor.sha256()
    assert found.preprocessing == "PNG RGB 40 x 30; 8-bit sRGB, upright"
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.verdict = "detected"  # pyright: ignore[reportAttributeAccessIssue]


def test_a_search_finds_the_turned_picture(extractor: Extractor) -> None:
    # Neither noise nor anything else that looks the same from all sides: rows of colour that fade to the right.
    ramp = np.linspace(0.2, 1, 40)[None, :, None] ** 3
    rows = np.random.default_rng(1).integers(0, 256, (30, 1, 3)) * ramp
    upright = Image.fromarray(rows.astype(np.uint8))
    key = read(extractor, encoded(upright))
    turned = encoded(upright.transpose(Image.Transpose.ROTATE_90).transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert read(extractor, turned) != key
    found = verify(turned, key, alpha=1e-5, extractor=extractor, search=True)
    assert (found.verdict, found.matches, found.searches) == ("detected", 24, 49)
    assert "mirrored" in found.preprocessing


@pytest.mark.parametrize(
    ("calibration", "reason"),
    [
        (None, "not calibrated"),
        (dataclasses.replace(GOOD, images={"random": 10}), "fewer than"),
        (dataclasses.replace(GOOD, bias=0.4), "unfair"),
        (dataclasses.replace(GOOD, correlation=0.9), "correlation"),
    ],
)
def test_an_untrusted_extractor_detects_nothing(
    extractor: Extractor, tmp_path: Path, calibration: Calibration | None, reason: str
) -> None:
    extractor.save(tmp_path / "model.safetensors")
    other = load(tmp_path)
    data = encoded(photo())
    key = read(extractor, data)
    assert verify(data, key, extractor=tmp_path).verdict == "detected"
    other.calibration = calibration
    found = verify(data, key, extractor=other)
    assert (found.verdict, found.matches) == ("inconclusive", 24)
    assert reason in found.reason


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (photo(1, 1), "at least 16"),
        (photo(200, 15), "at least 16"),
        (Image.new("RGB", (64, 64), (10, 200, 30)), "flat"),
        (Image.new("RGBA", (64, 64), (10, 200, 30, 0)), "flat"),
    ],
)
def test_pictures_with_nothing_to_read_are_inconclusive(extractor: Extractor, image: Image.Image, reason: str) -> None:
    data = encoded(image)
    found = verify(data, read(extractor, data), extractor=extractor)
    assert (found.verdict, found.matches) == ("inconclusive", 24)
    assert reason in found.reason


def test_every_kind_of_picture_is_read(extractor: Extractor) -> None:
    grey = photo().convert("L")
    wide = Image.fromarray(np.asarray(grey, dtype=np.uint16) * 257)
    assert (
        read(extractor, encoded(grey))
        == read(extractor, encoded(wide))
        == read(extractor, encoded(grey.convert("RGB")))
    )
    opaque = photo().convert("RGBA")
    assert read(extractor, encoded(opaque)) == read(extractor, encoded(photo()))
    for form in ("JPEG", "WEBP", "BMP", "TIFF"):
        assert verify(encoded(photo(), form), "0" * 24, extractor=extractor).preprocessing.startswith(form)


def test_the_middle_of_a_large_picture_is_read(extractor: Extractor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_SIDE", 20)
    found = verify(encoded(photo()), "0" * 24, extractor=extractor)
    assert found.preprocessing.endswith("middle 20 x 20")
    assert found.read == read(extractor, encoded(photo().crop((10, 5, 30, 25))))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"no picture at all", "cannot be read"),
        (encoded(photo())[:200], "cannot be read"),
        (encoded(photo(), "GIF", save_all=True, append_images=[photo(seed=1)]), "2 frames"),
        (encoded(Image.new("1", (20_000, 20_000))), "too large"),
        (encoded(Image.new("1", (11_000, 10_000))), "too large"),
    ],
    ids=["empty", "text", "cut", "animated", "bomb", "large"],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_single_picture_is_refused(extractor: Extractor, data: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        verify(data, "0" * 24, extractor=extractor)


@pytest.mark.parametrize("key", ["", "01", "2" * 24, "0" * 25, "١" * 24, []])
def test_wrong_keys_are_refused(extractor: Extractor, key: str | list[str]) -> None:
    with pytest.raises(ConfigError, match="key"):
        verify(encoded(photo()), key, extractor=extractor)


def test_without_an_extractor_it_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier, "DEFAULT", tmp_path / "extractor")
    with pytest.raises(ModelError, match="no extractor here"):
        verify(encoded(photo()), "01" * 24)


def test_a_broken_network_is_an_error(extractor: Extractor, tmp_path: Path) -> None:
    extractor.save(tmp_path / "model.safetensors")
    other = load(tmp_path)
    other.head.bias[0] = float("nan")
    with pytest.raises(LrdiffError, match="NaN"):
        verify(encoded(photo()), "0" * 24, extractor=other)


@pytest.mark.parametrize(
    ("matches", "answer"), [(48, "detected"), (41, "detected"), (40, "inconclusive"), (36, "inconclusive")]
)
def test_answers_by_number_of_matches(matches: int, answer: str) -> None:
    assert decide(matches, 48, 1e-6)[0] == answer
    assert decide(matches, 48, 1e-6, doubt="because")[0] == "inconclusive"


def test_other_answers() -> None:
    assert decide(35, 48, 1e-6)[0] == "not detected"
    assert decide(0, 48, 1e-6)[0] == "not detected"
    assert decide(41, 48, 1e-6, keys=10)[0] == "inconclusive"
    assert decide(41, 48, 1e-6, searches=8)[0] == "inconclusive"
    assert decide(16, 16, 1e-6)[0] == "inconclusive"
    with pytest.raises(ConfigError, match="alpha"):
        decide(48, 48, 0.0)


def test_keys_are_drawn() -> None:
    keys = {new_key() for _ in range(50)}
    assert len(keys) == 50
    assert {len(key) for key in keys} == {48}
    assert set("".join(keys)) == {"0", "1"}
    with pytest.raises(ConfigError, match="at least 1"):
        new_key(0)
