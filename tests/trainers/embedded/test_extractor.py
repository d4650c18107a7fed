"""The extractor's training: marks of an exact strength, a difficulty that follows what is mastered, a fair file."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lrdiff.errors import ConfigError, DataError
from lrdiff.rng import stream
from lrdiff.watermark.extractor import load
from tests.trainers.embedded.conftest import TINY_EXTRACTOR, micro_budget
from trainers.config import OptimConfig, PrecisionConfig
from trainers.embedded import manifest, unmarked
from trainers.embedded.export import export_extractor
from trainers.embedded.extractor import ExtractorConfig, TrainExtractor, views
from trainers.embedded.make import make
from trainers.embedded.marks import Marks
from trainers.embedded.pictures import SIDE, Photos, cuts
from trainers.embedded.shards import Shards
from trainers.embedded.stamps import Stamps
from trainers.engine import Engine
from trainers.loop import fit
from trainers.rundir import open_run


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with four pictures, two of them in a subfolder."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    random = np.random.default_rng(0)
    for number in range(4):
        pixels = random.integers(0, 256, (6, 8 + number, 3), dtype=np.uint8)
        name = folder / ("more" if number > 1 else "") / f"{number}.png"
        Image.fromarray(pixels).resize((90, 70), Image.Resampling.BICUBIC).save(name)
    return folder


def trainer(scenes: Shards, photos: Path | None = None, **more: object) -> TrainExtractor:
    torch.manual_seed(0)
    values = {**TINY_EXTRACTOR, "scenes": scenes.path, "photos": photos, "bits": 6, **more}
    return TrainExtractor(ExtractorConfig.model_validate(values))


def test_batches_repeat_and_mix_all_sources(scenes: Shards, photos: Path) -> None:
    method = trainer(scenes, photos, batch_size=10)
    first, again, other = (method.batch(0, stream(0, "b", n)) for n in (0, 0, 1))
    assert torch.equal(first["images"], again["images"])
    assert not torch.equal(first["images"], other["images"])
    assert first["images"].shape == (10, 3, 32, 32)
    assert float(first["images"].abs().max()) <= 1.0
    assert set(first["bits"].unique().tolist()) == {0.0, 1.0}
    assert trainer(scenes, batch_size=10).batch(0, stream(0, "b"))["images"].shape == (10, 3, 32, 32)


@pytest.mark.parametrize("psnr", [20.0, 34.0])
def test_marks_have_the_psnr_that_was_asked_for(psnr: float) -> None:
    images = 0.2 * torch.rand(3, 3, 40, 52, generator=stream(0, "i"))  # nothing is clipped
    marked = Marks(6, 16, 1.0)(images, torch.ones(3, 6), psnr, stream(0, "m"))
    error = (marked - images).square().mean((1, 2, 3))
    torch.testing.assert_close(10 * torch.log10(4 / error), torch.full((3,), psnr), atol=0.05, rtol=0)


@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_tiles_repeat_without_a_seam_and_carry_no_colour_of_their_own(smooth: float) -> None:
    torch.manual_seed(0)
    marks = Marks(6, 16, smooth)
    tiles = marks.tiles()
    assert tiles.shape == (12, 3, 16, 16)
    torch.testing.assert_close(tiles.mean((2, 3)), torch.zeros(12, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(tiles.square().mean((1, 2, 3)), torch.ones(12))
    with torch.no_grad():
        marks.textures.copy_(marks.textures.roll((3, 5), (2, 3)))
    torch.testing.assert_close(marks.tiles(), tiles.roll((3, 5), (2, 3)))


def test_a_message_chooses_one_of_two_textures_for_each_bit_and_the_place_is_random() -> None:
    torch.manual_seed(0)
    marks, flat = Marks(2, 8, 0.0), torch.zeros(1, 3, 8, 8)
    tiles = marks.tiles().detach()
    for bits, tile in (([0.0, 0.0], tiles[0] + tiles[1]), ([1.0, 0.0], tiles[2] + tiles[1])):
        written = marks(flat, torch.tensor([bits]), 40.0, stream(0, "m"))[0].detach()
        shifts = [tile.roll((y, x), (1, 2)) for y in range(8) for x in range(8)]
        assert max(float(torch.cosine_similarity(written.flatten(), s.flatten(), dim=0)) for s in shifts) > 0.9999
    assert not torch.equal(*(marks(flat, torch.ones(1, 2), 40.0, stream(0, "m", n)) for n in (0, 1)))


def test_a_mark_is_stronger_where_the_picture_is_busy() -> None:
    images = torch.zeros(1, 3, 32, 64)
    images[..., 32:] = 0.5 * torch.randn(32, 32, generator=stream(0, "i"))
    change = (Marks(6, 16, 1.0)(images, torch.ones(1, 6), 34.0, stream(0, "m")) - images).abs()
    assert float(change[..., 36:].mean()) > 2 * float(change[..., :28].mean())


@pytest.mark.parametrize("psnr", [20.0, 34.0])
def test_stamps_have_the_psnr_that_was_asked_for_and_no_colour_of_their_own(psnr: float) -> None:
    torch.manual_seed(0)
    images = 0.2 * torch.rand(3, 3, 40, 52, generator=stream(0, "i"))  # nothing is clipped
    change = Stamps(6, 4, 5)(images, torch.ones(3, 6), psnr) - images
    error = change.square().mean((1, 2, 3))
    torch.testing.assert_close(10 * torch.log10(4 / error), torch.full((3,), psnr), atol=0.05, rtol=0)


def test_stamps_move_with_the_picture() -> None:
    """Unlike textures: what is written depends on what is there, not on where it is."""
    torch.manual_seed(0)
    stamps, bits = Stamps(6, 4, 5), torch.randint(0, 2, (1, 6), generator=stream(0, "bits")).float()
    image = torch.zeros(1, 3, 48, 48)
    image[..., 16:26, 18:30] = 0.5 * torch.rand(3, 10, 12, generator=stream(0, "i"))
    written, moved = (stamps(picture, bits, 30.0) - picture for picture in (image, image.roll((7, 5), (2, 3))))
    torch.testing.assert_close(moved[..., 14:42, 14:42], written.roll((7, 5), (2, 3))[..., 14:42, 14:42])
    assert float(written[..., 12:30, 14:34].square().sum()) > 0.5 * float(written.square().sum())


def test_a_bit_chooses_one_of_two_kernels() -> None:
    torch.manual_seed(0)
    stamps = Stamps(2, 1, 5)
    image = 0.1 * torch.rand(1, 3, 24, 24, generator=stream(0, "i"))
    with torch.no_grad():
        stamps.kernels[2] = stamps.kernels[0]  # the first bit writes the same for 0 and 1
    written = {bits: stamps(image, torch.tensor([bits]), 30.0) for bits in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))}
    assert torch.equal(written[0.0, 0.0], written[1.0, 0.0])
    assert not torch.equal(written[0.0, 0.0], written[0.0, 1.0])


def test_it_learns_to_read(scenes: Shards) -> None:
    method = trainer(scenes, width=16, strides=(2, 2, 1), batch_size=12, ramp=10**6)
    optim = OptimConfig(steps=200, lr=1e-2, warmup=2)
    fit(method, optim, engine=Engine(PrecisionConfig(device="cpu")), seed=0)
    assert float(method.get_buffer("mastered")[:2].min()) > 0.7


def test_difficulty_rises_only_while_mastered(scenes: Shards) -> None:
    method = trainer(scenes, master=0.8, ramp=4)
    cases = (([0.7, 0.7], 0.0), ([0.9, 0.9], 0.25), ([0.99, 0.79], 0.25), ([0.79, 0.99], 0.25), ([0.8001, 0.9], 0.5))
    for read, expected in cases:
        method.get_buffer("mastered")[:2] = torch.tensor(read)  # the third kind needs a decoder
        method.stepped(1)
        assert float(method.get_buffer("difficulty")) == pytest.approx(expected)
    for _ in range(4):
        method.stepped(1)
    assert float(method.get_buffer("difficulty")) == 1.0


def test_state_is_complete(scenes: Shards) -> None:
    first, second = trainer(scenes), trainer(scenes)
    batch = first.batch(0, stream(0, "b"))
    first(batch, stream(0, "f"))
    assert float(first.get_buffer("seen")) == 1.0
    second.load_state({name: value.clone() for name, value in first.state().items()})
    losses = [method(batch, stream(0, "f", 1))[0] for method in (first, second)]
    assert torch.equal(losses[0], losses[1])


def test_all_parameters_learn(scenes: Shards) -> None:
    method = trainer(scenes, batch_size=12)
    groups = {id(p) for group in method.param_groups() for p in group.params}
    assert groups == {id(p) for p in method.parameters()}
    loss, _ = method(method.batch(0, stream(0, "b")), stream(0, "f"))
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in method.parameters())


def test_evaluation_names_every_distortion_and_repeats(scenes: Shards) -> None:
    method = trainer(scenes)
    found = method.evaluate(stream(0, "e"))
    assert found == method.evaluate(stream(0, "e"))
    names = views(torch.zeros(1, 3, 40, 40))
    assert set(found) == {"directions"} | {f"{kind}_{name}" for kind in ("textures", "stamps") for name in names}
    assert method.training
    assert all(0.0 <= value <= 1.0 for value in found.values())


def test_no_direction_of_the_bits_is_unread_at_first(scenes: Shards) -> None:
    method = trainer(scenes, bits=48)
    assert method.evaluate(stream(0, "e"))["directions"] == 1.0
    values = torch.linalg.svdvals(method.extractor.head.weight)
    torch.testing.assert_close(values, torch.ones(48))


def test_photos_are_read_from_subfolders_too(photos: Path, tmp_path: Path) -> None:
    read = Photos(photos)
    assert read.count == 4
    assert read.images(torch.tensor([0, 3])).shape == (2, 3, SIDE, SIDE)
    with pytest.raises(DataError, match="no picture"):
        Photos(tmp_path)


def test_cuts_stay_inside_whatever_the_scale(photos: Path) -> None:
    read = Photos(photos)
    for scales in ((0.05, 0.1), (0.5, 1.0), (4.0, 4.0)):
        assert cuts(read.images, torch.arange(3), 32, scales, stream(0, "c")).shape == (3, 3, 32, 32)
    whole = cuts(read.images, torch.arange(4), SIDE, (1.0, 1.0), stream(0, "c"))
    expected = read.images(torch.arange(4))
    for image, original in zip(whole, expected, strict=True):
        mirrored = not torch.equal(image, original)
        assert torch.equal(image.flip(-1) if mirrored else image, original)


def test_pictures_for_whitening_and_calibration_are_others(scenes: Shards, photos: Path) -> None:
    found = unmarked.kinds(scenes, 16, scenes, photos, 6)
    assert set(found) == {"world", "textures", "outputs", "photos"}
    for kind in found.values():
        first, second = (set(half.tolist()) for half in kind.halves)
        assert first
        assert second
        assert not first & second
    assert min(found["world"].halves[0].min(), found["world"].halves[1].min()) >= scenes.count - 16
    batches = list(found["photos"].batches(0, 70, stream(0, "k")))
    assert sum(map(len, batches)) == 70
    assert {batch.shape[-1] for batch in batches} == set(unmarked.SIDES)


@pytest.fixture(scope="module")
def made(scenes: Shards, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `assets` and `cache` in which a micro extractor was made after a micro `toys`."""
    root = tmp_path_factory.mktemp("made")
    (root / "cache" / "micro").mkdir(parents=True)
    (root / "cache" / "micro" / "scenes").symlink_to(scenes.path)
    places: dict[str, Any] = {"assets": root / "assets", "cache": root / "cache", "processes": 1}
    make("toys", budget=micro_budget(), **places)
    make("extractor", budget=micro_budget(), photos=photos, bits=6, out=root / "small", **places)
    return root


def test_the_made_file_is_whitened_calibrated_and_goes_on_where_it_was(made: Path, photos: Path) -> None:
    extractor = load(made / "small")
    assert extractor.bits == 6
    assert extractor.whitened
    assert extractor.calibration is not None
    assert extractor.calibration.images == dict.fromkeys(("world", "textures", "outputs", "photos"), 16)
    assert open_run(made / "cache" / "micro" / "extractor-6-5").read()["state"] == "finished"
    drawn = sorted((made / "cache" / "micro").glob("outputs-*/*.npy"))
    assert len(drawn) == 1
    before = drawn[0].stat().st_mtime_ns
    places: dict[str, Any] = {"assets": made / "assets", "cache": made / "cache", "processes": 1}
    make("extractor", budget=micro_budget(), photos=photos, bits=6, out=made / "again", **places)
    assert drawn[0].stat().st_mtime_ns == before
    assert load(made / "again").sha256() == extractor.sha256()
    assert "extractor" not in manifest.read(made / "assets")


def test_an_export_tells_of_bits_that_no_decoder_can_write(
    made: Path, photos: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    shutil.copytree(made / "cache" / "micro" / "extractor-6-5", tmp_path / "run")
    newest = max((tmp_path / "run" / "checkpoints").iterdir()) / "weights.safetensors"
    tensors = load_file(newest)
    heads = [name for name, tensor in tensors.items() if tensor.shape == (6, 6) and name.startswith("param.")]
    assert len(heads) == 1
    micro = made / "cache" / "micro"
    shards, outputs = (Shards.open(folder) for folder in (micro / "scenes", next(micro.glob("outputs-*"))))
    kinds = unmarked.kinds(shards, 16, outputs, photos, 32)
    export_extractor(tmp_path / "run", kinds, 16, tmp_path / "good")
    assert "independent combinations" not in caplog.text
    tensors[heads[0]][2] = tensors[heads[0]][4] + 0.05 * tensors[heads[0]][2]
    save_file(tensors, newest)
    export_extractor(tmp_path / "run", kinds, 16, tmp_path / "bad")
    assert "only 5 independent combinations of its 6 bits" in caplog.text


def test_photos_and_bits_are_only_for_the_extractor(made: Path, photos: Path) -> None:
    places: dict[str, Any] = {"assets": made / "assets", "cache": made / "cache"}
    with pytest.raises(ConfigError, match="for the extractor"):
        make("toys", budget=micro_budget(), photos=photos, **places)
    with pytest.raises(ConfigError, match="48 bits"):
        make("extractor", budget=micro_budget(), bits=100, **places)
