"""`python -m tests.bench.dreambooth --script FILE`: our trainer beside diffusers' own dreambooth LoRA script.

Both train LoRA of rank 4 on the same Stable Diffusion 1.5 (public configuration, random weights; or `--model FOLDER`),
the same pictures, size, batch and number format, each in a process of its own; so does our tensor-lora. A step is the
difference of a long and a short run over the steps that lie between them, so that loading and caching do not count;
memory is the peak of the whole process, so that they do. On a CPU the seconds are those of the processor, which hardly
depend on what else runs.

The script is not part of diffusers' wheel: give `examples/dreambooth/train_dreambooth_lora.py` of a checkout that fits
the installed version. It needs torchvision. Without `--script` only our side is measured.

On two cores a step takes half a minute: `--steps 2 6` is enough there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from lrdiff.assets import SUBJECTS
from tests.bench.result import write
from tests.bench.tensor_lora_step import SD15
from tests.tiny import build_tokenizer
from trainers.registry import run_config_class
from trainers.rundir import create

PROMPT = "a photo of sks mug"
OURS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4},
    "tensor-lora": {"transform_rank": 2, "residual": "ring", "r": 6, "alpha": 1.0},
}
THEIRS = "train_dreambooth_lora.py"
PEAK = """
import json, resource, runpy, sys, time, torch
begin = time.perf_counter()
sys.argv = sys.argv[1:]
code = 0
try:
    if sys.argv[0].endswith(".py"):
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__")
except SystemExit as end:
    code = end.code or 0
used = resource.getrusage(resource.RUSAGE_SELF)
if torch.cuda.is_available():
    print(json.dumps([time.perf_counter() - begin, torch.cuda.max_memory_allocated()]))
else:
    print(json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss * 1024]))
raise SystemExit(code)
"""


def build(folder: Path) -> Path:
    """Write Stable Diffusion 1.5 with random weights: 4 GB."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        sample_size=512,
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
    )
    text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = 77
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(**SD15),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def ours(method: str, model: Path, images: Path, scratch: Path, steps: int, dtype: str) -> list[str]:
    """Return the words that start our trainer on a run of its own."""
    config = run_config_class(method).model_validate(
        {
            "model": str(model),
            "data": {"images": str(images), "prompt": PROMPT, "batch_size": 1},
            "method": OURS[method],
            "optim": {"steps": steps, "warmup": 0, "lr": 5e-4},
            "precision": {"dtype": dtype},
            "watch": {"checkpoint_every": 0, "evaluate_every": 0, "preview_every": 0},
        }
    )
    run = create(scratch / f"{method}-{steps}", method, config.model_dump(mode="json"))
    return ["trainers", str(run.path)]


def theirs(script: Path, model: Path, images: Path, scratch: Path, steps: int, dtype: str, side: int) -> list[str]:
    """Return the words that start the script with the same settings."""
    flags: dict[str, Any] = {
        "pretrained_model_name_or_path": model,
        "instance_data_dir": images,
        "instance_prompt": PROMPT,
        "resolution": side,
        "train_batch_size": 1,
        "max_train_steps": steps,
        "learning_rate": 5e-4,
        "lr_warmup_steps": 0,
        "rank": 4,
        "mixed_precision": {"fp32": "no"}.get(dtype, dtype),
        "output_dir": scratch / f"theirs-{steps}",
    }
    return [str(script), *(word for name, value in flags.items() for word in (f"--{name}", str(value)))]


def timed(words: list[str]) -> tuple[float, int]:
    """Run a training; return its seconds and its peak memory in bytes. Raises `CalledProcessError` where it fails."""
    done = subprocess.run([sys.executable, "-c", PEAK, *words], stdout=subprocess.PIPE, text=True, check=True)
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


def main(arguments: list[str]) -> None:
    """Measure both, or ours alone, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--script", type=Path, default=None)
    parser.add_argument("--model", type=Path, default=None, help="a folder with weights instead of random ones")
    parser.add_argument("--images", type=Path, default=SUBJECTS / "horned-mug" / "train")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="bf16")
    parser.add_argument("--steps", type=int, nargs=2, default=(5, 25), metavar=("SHORT", "LONG"))
    options = parser.parse_args(arguments)
    short, long = options.steps
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        model = options.model or build(scratch / "model")
        side = json.loads((model / "unet" / "config.json").read_text())["sample_size"] * 8
        # Captions beside the pictures are no pictures to the script.
        pictures = scratch / "pictures"
        pictures.mkdir()
        for path in sorted(options.images.glob("*.png")) + sorted(options.images.glob("*.jpg")):
            (pictures / path.name).symlink_to(path.resolve())
        sides: dict[str, Callable[[int], list[str]]] = {}
        if options.script is not None:
            sides[THEIRS] = lambda steps: theirs(options.script, model, pictures, scratch, steps, options.dtype, side)
        for method in OURS:
            sides[f"lrdiff train {method}"] = partial(ours, method, model, pictures, scratch, dtype=options.dtype)
        rows: list[list[Any]] = []
        for name, words in sides.items():
            (fewer, _), (more, peak) = timed(words(short)), timed(words(long))
            step = (more - fewer) / (long - short)
            ratios = [step / rows[0][1], peak / 1e9 / rows[0][3]] if rows else [1.0, 1.0]
            rows.append([name, step, ratios[0], peak / 1e9, ratios[1]])
            print(*rows[-1], sep="  ", flush=True)
    words = ["python -m tests.bench.dreambooth", *(["--script FILE"] if options.script else [])]
    write(
        "dreambooth",
        " ".join([*words, *(["--steps", str(short), str(long)] if (short, long) != (5, 25) else [])]),
        ["trainer", "seconds a step", "x the first", "peak GB", "x the first"],
        rows,
        note=f"Batch 1, {side} px, {options.dtype}, LoRA r=4, tensor-lora at the paper's (2, 6); Stable Diffusion 1.5 "
        + ("from a folder." if options.model else "with random weights.")
        + ("" if options.script else " The script was not given.")
        + ("" if torch.cuda.is_available() else " Processor seconds on one thread. On a GPU: not measured."),
    )


if __name__ == "__main__":
    main(sys.argv[1:])
