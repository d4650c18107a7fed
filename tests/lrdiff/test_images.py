"""Reading whatever people have, and writing PNG."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, features

from lrdiff.errors import DataError
from lrdiff.images import EXTENSIONS, MAX_PIXELS, crop_to, read_image, save_png, to_image, to_tensor

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def corners() -> Image.Image:
    """Return 24 x 16 pixels: red top left, green top right, blue bottom left, white bottom right."""
    image = Image.new("RGB", (24, 16))
    for box, colour in (((0, 0), RED), ((12, 0), GREEN), ((0, 8), BLUE), ((12, 8), WHITE)):
        image.paste(colour, (*box, box[0] + 12, box[1] + 8))
    return image


def colours(image: Image.Image) -> list[tuple[int, ...]]:
    """Return the pixels in the middle of the four quarters."""
    width, height = image.size
    places = [(x * width // 4, y * height // 4) for y in (1, 3) for x in (1, 3)]
    return [image.getpixel(place) for place in places]  # pyright: ignore[reportReturnType]


def near(image: Image.Image, expected: list[tuple[int, ...]], tolerance: int) -> bool:
    return bool((np.abs(np.subtract(colours(image), expected)) <= tolerance).all())


STORED = {
    # what a camera stores so that a viewer that applies the orientation shows `corners()`
    1: lambda image: image,
    2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
    4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
    7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
}


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, kind: str) -> None:
    stored = STORED[orientation](corners())
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{kind}"
    stored.save(path, exif=exif, quality=95)
    image = read_image(path)
    assert image.size == (24, 16)
    assert near(image, [RED, GREEN, BLUE, WHITE], 40)
    assert image.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.gif", "a.webp"])
def test_lossless_formats_keep_every_pixel(tmp_path: Path, name: str) -> None:
    corners().save(tmp_path / name, lossless=True)
    image = read_image(tmp_path / name)
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.asarray(corners()))


def test_palette(tmp_path: Path) -> None:
    corners().quantize(8).save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png")), np.asarray(corners()))


def test_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 200, 10, 20])
    image.paste(0, (0, 0, 4, 8))
    image.save(tmp_path / "a.png", transparency=0)
    pixels = read_image(tmp_path / "a.png")
    assert pixels.getpixel((1, 1)) == WHITE
    assert pixels.getpixel((6, 1)) == (200, 10, 20)


def test_alpha_is_laid_over_white(tmp_path: Path) -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:, :2] = (255, 0, 0, 128)
    rgba[:, 2:] = (10, 20, 30, 0)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.getpixel((0, 0)) == (255, 127, 127)
    assert image.getpixel((3, 3)) == WHITE, "colours hidden under transparency must not show"


def test_grey_with_alpha_and_grey(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4, 2), (100, 0), np.uint8)).save(tmp_path / "la.png")
    Image.fromarray(np.full((4, 4), 100, np.uint8)).save(tmp_path / "l.png")
    assert read_image(tmp_path / "la.png").getpixel((0, 0)) == WHITE
    assert read_image(tmp_path / "l.png").getpixel((0, 0)) == (100, 100, 100)


def test_one_bit(tmp_path: Path) -> None:
    Image.new("1", (4, 4), 1).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_use_their_full_range(tmp_path: Path, name: str) -> None:
    values = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / name)
    grey = np.asarray(read_image(tmp_path / name))[..., 0].reshape(-1)
    assert np.array_equal(grey, np.arange(256))


def test_floats_from_zero_to_one(tmp_path: Path) -> None:
    Image.fromarray(np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)).save(tmp_path / "a.tif")
    grey = np.asarray(read_image(tmp_path / "a.tif"))[..., 0].reshape(-1)
    assert np.array_equal(grey, np.arange(256))


@pytest.mark.parametrize("value", [2.0, -1.0, float("nan")])
def test_floats_of_unknown_range_are_refused(tmp_path: Path, value: float) -> None:
    Image.fromarray(np.full((4, 4), value, dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif.*save it"):
        read_image(tmp_path / "a.tif")


def test_integers_beyond_sixteen_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 70_000, dtype=np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif.*save it"):
        read_image(tmp_path / "a.tif")


def test_cmyk(tmp_path: Path) -> None:
    corners().convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert near(read_image(tmp_path / "a.jpg"), [RED, GREEN, BLUE, WHITE], 40)


def test_one_pixel(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), RED).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").getpixel((0, 0)) == RED
    assert crop_to(read_image(tmp_path / "a.png"), 8, 8).getpixel((4, 4)) == RED


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tiff"])
def test_animations_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    corners().save(path, save_all=True, append_images=[Image.new("RGB", (24, 16))])
    with pytest.raises(DataError, match=rf"a\.{kind}.*2 frames"):
        read_image(path)


def test_the_first_picture_of_a_phone_photo_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    corners().save(path, format="MPO", save_all=True, append_images=[Image.new("RGB", (24, 16))], quality=95)
    assert near(read_image(path), [RED, GREEN, BLUE, WHITE], 40)


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that claims a size and ends where its pixels should begin."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + body
        + struct.pack(">I", zlib.crc32(body))
        + struct.pack(">I", 64)
        + b"IDAT"
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_001, 60_000, 2**31 - 1])
def test_huge_pictures_are_refused_before_they_are_decoded(tmp_path: Path, side: int) -> None:
    (tmp_path / "a.png").write_bytes(png_header(side, side) + bytes(64))
    assert side * side > MAX_PIXELS
    with pytest.raises(DataError, match=r"a\.png.*megapixels"):
        read_image(tmp_path / "a.png")


def bad_files() -> dict[str, bytes]:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 90).convert("RGB").save(buffer, format="JPEG")
    jpeg = buffer.getvalue()
    return {
        "empty.png": b"",
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "header-only.jpg": jpeg[:20],
        "text.png": b"this is text\n",
        "zeros.webp": bytes(1000),
        "html.jpg": b"<!doctype html><title>404</title>",
        "no-width.png": png_header(0, 5),
    }


@pytest.mark.parametrize("name", bad_files())
def test_damaged_files_are_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(bad_files()[name])
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "replace or remove" in str(caught.value)
    assert ("is empty" in str(caught.value)) == (name == "empty.png")


@pytest.mark.parametrize("name", ["absent.png", "folder.png"])
def test_what_is_no_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DataError, match=name):
        read_image(tmp_path / name)


@pytest.mark.filterwarnings("ignore")  # Pillow remarks on the damage
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "MPO"])
def test_any_damage_is_a_data_error_or_a_picture(tmp_path: Path, kind: str) -> None:
    """Cut and flip bytes at random places: nothing but DataError may come out."""
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    extra = {"save_all": True, "append_images": [corners()]} if kind == "MPO" else {}
    corners().save(buffer, format=kind, **({} if kind in ("GIF", "BMP") else {"exif": exif}), **extra)
    data = buffer.getvalue()
    rng = np.random.default_rng(0)
    path = tmp_path / "a.bin"
    refused = []
    for trial in range(120):
        damaged = bytearray(data)
        if trial % 2:
            damaged = damaged[: int(rng.integers(0, len(data)))]
        for place in rng.integers(0, len(data), size=3):
            if place < len(damaged):
                damaged[place] = int(rng.integers(0, 256))
        path.write_bytes(damaged)
        try:
            assert read_image(path).mode == "RGB"
        except DataError as error:
            refused.append(str(error))
    assert refused
    assert all(str(path) in text for text in refused)


def test_crop_covers_and_takes_the_middle() -> None:
    wide = Image.new("RGB", (300, 100), BLUE)
    wide.paste(RED, (100, 0, 200, 100))
    square = crop_to(wide, 50, 50)
    assert square.size == (50, 50)
    assert all(square.getpixel((x, 25)) == RED for x in (3, 25, 46))


def test_tensor_and_back_is_exact() -> None:
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(3, 16, 16)
    image = Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())
    tensor = to_tensor(image)
    assert tensor.dtype == torch.float32
    assert tensor.shape == (3, 16, 16)
    assert float(tensor.min()) == -1.0
    assert float(tensor.max()) == 1.0
    assert np.array_equal(np.asarray(to_image(tensor)), np.asarray(image))


def test_values_outside_the_screen_are_clipped_and_nan_is_refused(tmp_path: Path) -> None:
    assert to_image(torch.full((3, 2, 2), 3.0)).getpixel((0, 0)) == WHITE
    assert to_image(torch.full((3, 2, 2), -3.0)).getpixel((0, 0)) == (0, 0, 0)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(DataError, match="NaN"):
            save_png(torch.full((3, 2, 2), bad), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_png_on_disk_is_what_was_given(tmp_path: Path) -> None:
    tensor = to_tensor(corners())
    save_png(tensor.to(torch.bfloat16), tmp_path / "a.png")
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png")), np.asarray(corners()))


ADOBE_RGB = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
D50 = (0.9642, 1.0, 0.8249)
INKS = 4


def icc(space: str, pcs: str, tags: dict[str, bytes]) -> bytes:
    """Return a colour profile of version 2.4 with the given tags, see ICC.1:2001-04, section 6."""
    tags = {"wtpt": xyz(*D50), "cprt": b"text" + bytes(4) + b"none\0", **tags}
    table, body = struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        table += name.encode() + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    head = bytes(8) + b"\x02\x40\0\0" + (b"prtr" if space == "CMYK" else b"mntr") + space.encode().ljust(4)
    head += pcs.encode().ljust(4) + bytes(12) + b"acsp" + bytes(28) + xyz(*D50)[8:]
    data = head.ljust(128, b"\0") + table + body
    return struct.pack(">I", len(data)) + data[4:]


def xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(v * 65536)) for v in values)


def gamma(value: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(value * 256))


def rgb_profile(matrix: np.ndarray = ADOBE_RGB, power: float = 2.2) -> bytes:
    tags = {f"{c}XYZ": xyz(*matrix[:, i]) for i, c in enumerate("rgb")} | {f"{c}TRC": gamma(power) for c in "rgb"}
    return icc("RGB", "XYZ", tags)


def cmyk_profile() -> bytes:
    """Return the profile of a printer whose cyan ink is red and whose other inks are only dark."""
    clut = b""
    for number in range(2**INKS):
        cyan, others = number >> 3, number & 7
        clut += bytes((136, 208, 195) if cyan and not others else (0, 128, 128) if others else (255, 128, 128))
    ramp = bytes(range(256))
    unit = b"".join(struct.pack(">i", 65536 * (i % 4 == 0)) for i in range(9))
    lut = b"mft1" + bytes(4) + bytes((INKS, 3, 2, 0)) + unit + ramp * INKS + clut + ramp * 3
    return icc("CMYK", "Lab", {"A2B0": lut, "A2B1": lut})


def as_srgb(colour: tuple[int, int, int], matrix: np.ndarray, power: float) -> np.ndarray:
    """Compute the conversion by hand: to light, to XYZ, to sRGB's light, to sRGB's code."""
    linear = np.linalg.inv(SRGB) @ matrix @ (np.array(colour) / 255) ** power
    linear = linear.clip(0, 1)
    coded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (coded * 255).round()


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tiff"])
def test_colours_go_through_the_profile_to_srgb(tmp_path: Path, kind: str) -> None:
    colour = (90, 170, 80)
    Image.new("RGB", (16, 16), colour).save(tmp_path / f"a.{kind}", icc_profile=rgb_profile(), quality=100)
    expected = as_srgb(colour, ADOBE_RGB, 2.2)
    assert np.abs(expected - colour).max() > 20
    found = np.array(read_image(tmp_path / f"a.{kind}").getpixel((8, 8)))
    assert np.abs(found - expected).max() <= 3, (found, expected)


def test_a_picture_in_srgb_keeps_every_pixel(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    noise.save(tmp_path / "a.png", icc_profile=profile)
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png")), np.asarray(noise))


def test_profiles_of_grey_palette_and_transparent_pictures(tmp_path: Path) -> None:
    grey_profile = icc("GRAY", "XYZ", {"kTRC": gamma(1.0)})
    light = as_srgb((100, 100, 100), SRGB, 1.0)
    Image.new("L", (4, 4), 100).save(tmp_path / "l.png", icc_profile=grey_profile)
    Image.new("LA", (4, 4), (100, 255)).save(tmp_path / "la.png", icc_profile=grey_profile)
    Image.fromarray(np.full((4, 4), 25700, np.uint16)).save(tmp_path / "i.png", icc_profile=grey_profile)
    for name in ("l", "la", "i"):
        assert np.abs(np.array(read_image(tmp_path / f"{name}.png").getpixel((0, 0))) - light).max() <= 2, name
    colour = (90, 170, 80)
    expected = as_srgb(colour, ADOBE_RGB, 2.2)
    for mode in ("P", "RGBA"):
        Image.new("RGB", (4, 4), colour).convert(mode, palette=Image.Palette.ADAPTIVE).save(
            tmp_path / "a.png", icc_profile=rgb_profile()
        )
        assert np.abs(np.array(read_image(tmp_path / "a.png").getpixel((0, 0))) - expected).max() <= 3, mode
    Image.new("L", (4, 4), 100).save(tmp_path / "b.png", icc_profile=rgb_profile(SRGB, 1.0))
    found = np.array(read_image(tmp_path / "b.png").getpixel((0, 0)))
    assert np.abs(found - light).max() <= 2, "grey may be described as RGB"


def test_cmyk_goes_through_its_profile(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (255, 0, 0, 0)).save(tmp_path / "plain.jpg", quality=100)
    Image.new("CMYK", (16, 16), (255, 0, 0, 0)).save(tmp_path / "a.jpg", quality=100, icc_profile=cmyk_profile())
    plain, red = (read_image(tmp_path / name).getpixel((8, 8)) for name in ("plain.jpg", "a.jpg"))
    assert np.abs(np.subtract(plain, (0, 255, 255))).max() <= 3
    assert red[0] > 200, red  # pyright: ignore[reportOptionalSubscript, reportIndexIssue]
    assert max(red[1:]) < 60, red  # pyright: ignore[reportOptionalSubscript, reportIndexIssue]


def test_bad_profiles_are_refused_by_name(tmp_path: Path) -> None:
    cases = {
        "rubbish.png": (b"no profile at all", r"rubbish\.png: its colour profile is damaged"),
        "cut.png": (rgb_profile()[:200], r"cut\.png: its colour profile is damaged"),
        "empty.png": (icc("RGB", "XYZ", {}), r"empty\.png: its colour profile is damaged"),
        "other.png": (cmyk_profile(), r"other\.png: is RGB, but its colour profile is for CMYK"),
    }
    for name, (profile, message) in cases.items():
        corners().save(tmp_path / name, icc_profile=profile)
        with pytest.raises(DataError, match=message + ".*save it anew in sRGB"):
            read_image(tmp_path / name)


def test_sixteen_bits_turned_by_the_camera(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.full((4, 8), 40_000, np.uint16)).save(tmp_path / "a.png", exif=exif)
    image = read_image(tmp_path / "a.png")
    assert image.size == (4, 8)
    assert image.getpixel((0, 0)) == (156, 156, 156)


@pytest.mark.parametrize("name", ["IMG_1.HEIC", "renamed.jpg"])
@pytest.mark.parametrize("brand", ["heic", "mif1", "avif"])
def test_formats_that_must_be_converted_are_named(tmp_path: Path, name: str, brand: str) -> None:
    (tmp_path / name).write_bytes(b"\0\0\0\x18ftyp" + brand.encode() + bytes(64))
    kind = "AVIF" if brand == "avif" else "HEIC"
    with pytest.raises(DataError, match=rf"{name}: is a picture in {kind} format .*convert it to PNG or JPEG"):
        read_image(tmp_path / name)


def test_avif_is_read_where_pillow_can(tmp_path: Path) -> None:
    assert ".avif" in EXTENSIONS
    if not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    corners().save(tmp_path / "a.avif", quality=95)
    assert near(read_image(tmp_path / "a.avif"), [RED, GREEN, BLUE, WHITE], 40)
