"""What this machine has for lrdiff, what it lacks, and what to do about it. Looks only; changes nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lrdiff import __version__
from lrdiff.assets import ASSETS

ROOT = ASSETS.parent
SHIPPED = {"toys": "model_index.json", "extractor": "model.safetensors"}
"""Models without which the commands' defaults do not work, and a file that each must have."""

LOW_DISK = 2e9
"""Bytes below which a run's checkpoints, previews and images soon fill the disk."""

OPTIONAL = {
    "xformers": (
        "memory-saving attention for your own diffusers code; no command here uses it",
        "pip install xformers",
    ),
    "triton": ("compiled kernels on NVIDIA GPUs; no command here uses it yet", "pip install triton"),
    "bitsandbytes": ("tensor-lora on quantised layers in your own code", "pip install bitsandbytes"),
    "playwright": ("tests of the page in a real browser", "pip install playwright"),
}

State = Literal["ok", "absent", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact about the machine.

    Attributes:
        section: Heading it belongs to.
        name: What was looked at.
        value: What was found.
        state: "absent" is something optional that is not there; "problem" keeps lrdiff from working.
        advice: What to do; empty when nothing is to be done.
    """

    section: str
    name: str
    value: str
    state: State = "ok"
    advice: str = ""


def examine() -> list[Finding]:
    """Look at everything. Imports torch."""
    return [*_software(), *_required(), *_optional(), *_processor(), *_torch(), *_disk(), *_models(), *_browser()]


def is_healthy(findings: list[Finding]) -> bool:
    """Tell whether nothing keeps lrdiff from working."""
    return all(finding.state != "problem" for finding in findings)


def as_record(findings: list[Finding]) -> dict[str, Any]:
    """Return the findings as JSON values."""
    return {"ok": is_healthy(findings), "findings": [asdict(finding) for finding in findings]}


def as_text(findings: list[Finding]) -> str:
    """Return the findings for people: a section each, what is absent with what to install, and a verdict."""
    marks = {"ok": " ", "absent": "-", "problem": "!"}
    width = max(len(finding.name) for finding in findings)
    lines: list[str] = []
    for section in dict.fromkeys(finding.section for finding in findings):
        lines += ["", section]
        for item in findings:
            if item.section == section:
                advice = f"   -> {item.advice}" if item.advice else ""
                lines.append(f"{marks[item.state]} {item.name:<{width}}  {item.value}{advice}".rstrip())
    problems = [finding for finding in findings if finding.state == "problem"]
    verdict = "everything needed is in order" if not problems else "to put right:"
    todo = [f"! {finding.name}: {finding.value} -> {finding.advice}" for finding in problems]
    return "\n".join([*lines[1:], "", verdict, *todo])


def _software() -> Iterator[Finding]:
    yield Finding("software", "lrdiff", f"{__version__} in {ROOT}")
    enough = sys.version_info >= (3, 11)
    advice = "" if enough else "install Python 3.11 or newer"
    yield Finding("software", "python", platform.python_version(), "ok" if enough else "problem", advice)
    yield Finding("software", "system", f"{platform.system()} {platform.release()}, {platform.machine()}")


def _required() -> Iterator[Finding]:
    """Compare installed packages with what lrdiff's own metadata asks for."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires("lrdiff") or []
    except importlib.metadata.PackageNotFoundError:
        advice = f"pip install -e {ROOT}"
        yield Finding("packages", "lrdiff", "is not installed, so its needs are unknown", "problem", advice)
        return
    for need in map(Requirement, lines):
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        wanted, version = f"{need.name}{need.specifier}", _version(need.name)
        if version is None:
            yield Finding("packages", need.name, "absent", "problem", f"pip install '{wanted}'")
        elif not need.specifier.contains(version, prereleases=True):
            value = f"{version}, but {need.specifier} is needed"
            yield Finding("packages", need.name, value, "problem", f"pip install '{wanted}'")
        else:
            yield Finding("packages", need.name, version)


def _optional() -> Iterator[Finding]:
    for name, (purpose, install) in OPTIONAL.items():
        version = _version(name)
        if version is None:
            yield Finding("optional packages", name, f"absent: {purpose}", "absent", install)
        else:
            yield Finding("optional packages", name, f"{version}: {purpose}")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> Iterator[Finding]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("device", "cpu", f"{_cpu_name()}, {os.cpu_count()} cores, {usable} usable by this process")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _first_line(Path("/sys/fs/cgroup/memory.max"))
    limited = f", limited to {_gb(int(limit))} here" if limit.isdigit() and int(limit) < total else ""
    yield Finding("device", "memory", f"{_gb(total)}{limited}")


def _cpu_name() -> str:
    """Return the processor's name; Linux tells it in /proc only."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _first_line(path: Path) -> str:
    return path.read_text().partition("\n")[0] if path.is_file() else ""


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except ImportError as error:
        yield Finding("device", "torch", f"cannot be imported ({error})", "problem", "pip install torch")
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    yield Finding("device", "torch", f"{torch.__version__}, {build}, {torch.get_num_threads()} threads")
    driver = _driver()
    if torch.cuda.is_available():
        yield from _gpus(torch, driver)
    elif driver:
        advice = "install a CUDA build of torch that fits the driver"
        value = f"driver {driver}, but torch ({build}) cannot use the GPU"
        yield Finding("device", "gpu", value, "absent", advice)
    else:
        yield Finding("device", "gpu", "none; lrdiff works on the CPU", "absent")
    yield Finding("attention", "sdpa", "part of torch, the default")
    for name in ("xformers",):
        version = _version(name)
        if version is None:
            yield Finding("attention", name, "absent", "absent", OPTIONAL[name][1])
        else:
            yield Finding("attention", name, f"installed: {version}")


def _gpus(torch: Any, driver: str) -> Iterator[Finding]:
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name, (major, minor) = torch.cuda.get_device_name(number), torch.cuda.get_device_capability(number)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        text = f"{name}, {_gb(total)}, {_gb(free)} free, compute {major}.{minor}, {bf16}"
        yield Finding("device", f"gpu {number}", text + (f", driver {driver}" if driver else ""))


def _driver() -> str:
    """Return the NVIDIA driver's version, or nothing where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    words = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    result = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    return result.stdout.partition("\n")[0].strip() if result.returncode == 0 else ""


def _disk() -> Iterator[Finding]:
    for name, folder in (("here", Path.cwd()), ("temporary", Path(tempfile.gettempdir()))):
        usage = shutil.disk_usage(folder)
        value = f"{_gb(usage.free)} free of {_gb(usage.total)} in {folder}"
        low = usage.free < LOW_DISK
        yield Finding("disk", name, value, "problem" if low else "ok", "free some space" if low else "")


def _models() -> Iterator[Finding]:
    """Compare every file of the manifest with its checksum."""
    listed = manifest()
    for name, file in SHIPPED.items():
        if any(path.startswith(f"models/{name}/") for path in listed):
            continue
        if (ASSETS / "models" / name / file).is_file():
            yield Finding("shipped models", name, "present, but not in assets/MANIFEST.toml, so it cannot be checked")
        else:
            yield Finding("shipped models", name, "absent", "problem", f"lrdiff embedded make {name}")
    groups: dict[str, list[str]] = {}
    for path in listed:
        groups.setdefault(_group(path), []).append(path)
    for group, paths in sorted(groups.items()):
        yield _checked(group, paths, listed)


def _checked(group: str, paths: list[str], listed: dict[str, str]) -> Finding:
    from lrdiff.artifact import sha256

    section = "shipped models" if group.startswith("models/") else "shipped files"
    name = group.removeprefix("models/")
    files = {path: ASSETS / path for path in paths}
    absent = [path for path, file in files.items() if not file.is_file()]
    changed = [path for path, file in files.items() if path not in absent and sha256(file) != listed[path]]
    size = sum(file.stat().st_size for path, file in files.items() if path not in absent)
    if not absent and not changed:
        return Finding(section, name, f"{len(paths)} files, {size / 1e6:.1f} MB, checksums as in the manifest")
    what = [f"absent: {', '.join(absent)}"] * bool(absent) + [f"changed: {', '.join(changed)}"] * bool(changed)
    return Finding(section, name, "; ".join(what), "problem", f"git checkout -- assets/{group}")


def _group(path: str) -> str:
    """Return what a file belongs to: models/toys/unet/x -> models/toys, subjects/mug/x -> subjects."""
    words = path.split("/")
    return "/".join(words[: 2 if words[0] == "models" else 1])


def manifest() -> dict[str, str]:
    """Return the shipped files and their sha256, by path below assets/. Empty where there is no manifest."""
    file = ASSETS / "MANIFEST.toml"
    if not file.is_file():
        return {}
    found: dict[str, str] = {}
    _entries(tomllib.loads(file.read_text()), found)
    return found


def _entries(value: Any, found: dict[str, str]) -> None:
    """Collect every table that has `path` and `sha256`, at any depth."""
    if isinstance(value, dict):
        if {"path", "sha256"} <= set(value):
            found[str(value["path"]).removeprefix("assets/")] = str(value["sha256"])
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _entries(item, found)


def _browser() -> Iterator[Finding]:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    program = next(filter(None, map(shutil.which, names)), None)
    store = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or Path.home() / ".cache" / "ms-playwright")
    stored = sorted(store.glob("chromium*")) if store.is_dir() else []
    if program or stored:
        yield Finding("tests", "chromium", str(program or stored[-1]))
    else:
        yield Finding("tests", "chromium", "absent: browser tests are skipped", "absent", "playwright install chromium")


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
