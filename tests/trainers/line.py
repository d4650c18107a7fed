"""A method small enough to check by hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from lrdiff.artifact import Artifact, Header
from trainers.config import OptimConfig, PrecisionConfig, RunConfig, Settings
from trainers.data import epoch_indices
from trainers.engine import Engine
from trainers.loop import Hook, State, fit
from trainers.method import Batch, Method, Metrics, ParamGroup
from trainers.registry import Entry


class LineSettings(Settings):
    """Settings of `Line`."""

    dropout: NonNegativeFloat = 0.0
    """Share of inputs dropped, by the global generator."""

    noise: NonNegativeFloat = 0.0
    """Noise on the targets, by the method's generator."""


class Line(Method[LineSettings]):
    """Least squares `y = x w + b` on eight fixed points, with slope and offset in groups of their own."""

    def __init__(self, config: LineSettings | None = None, batch_size: int = 4) -> None:
        super().__init__(config or LineSettings())
        rng = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(8, 3, generator=rng)
        self.targets = torch.randn(8, generator=rng)
        self.slope = nn.Parameter(torch.tensor([0.5, -0.5, 1.0]))
        self.offset = nn.Parameter(torch.tensor(0.1))
        self.frozen = nn.Parameter(torch.tensor(2.0), requires_grad=False)
        self.average = torch.zeros(3)
        self.batch_size = batch_size
        self.dropout = nn.Dropout(self.config.dropout)
        self.bad_loss_at = self.bad_offset_at = -1
        self.seen: list[int] = []

    def batch(self, index: int, rng: torch.Generator) -> Batch:
        self.seen.append(index)
        chosen = epoch_indices(index, self.batch_size, len(self.inputs), 0)
        return {"x": self.inputs[chosen], "y": self.targets[chosen], "index": index}

    def forward(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        y = batch["y"] + self.config.noise * torch.randn(len(batch["y"]), generator=rng)
        guess = self.dropout(batch["x"]) @ self.slope + self.offset
        loss = (guess - y).square().mean()
        if batch["index"] == self.bad_loss_at:
            loss = loss * float("nan")
        if batch["index"] == self.bad_offset_at:
            # a finite loss whose gradient is infinite for the offset alone
            loss = loss + (self.offset - self.offset.detach()).abs().sqrt()
        return loss, {"absolute": (guess - y).abs().mean().detach()}

    def param_groups(self) -> Iterable[ParamGroup]:
        return [ParamGroup("slope", [self.slope]), ParamGroup("offset", [self.offset], lr_scale=0.5, decay=False)]

    def stepped(self, step: int) -> None:
        self.average = 0.9 * self.average + 0.1 * self.slope.detach()

    def artifact(self) -> Artifact:
        return Artifact({"slope": self.slope.detach().clone()}, Header("line", "line", {}, "none", "none"))

    def evaluate(self, rng: torch.Generator) -> dict[str, float]:
        error = (self.inputs @ self.slope + self.offset - self.targets).square().mean()
        return {"fixed": float(error), "draw": float(torch.rand(1, generator=rng))}

    def preview(self, rng: torch.Generator) -> dict[str, Tensor]:
        return {"line": torch.rand(2, 3, 4, 4, generator=rng) * 2 - 1}

    def state(self) -> dict[str, Tensor]:
        return {"average": self.average}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.average = state["average"].clone()


def cpu() -> Engine:
    """Return an engine on the CPU in fp32."""
    return Engine(PrecisionConfig(device="cpu"))


def train(method: Method, hooks: tuple[Hook, ...] = (), restore: object = None, **optim: object) -> State:
    """Run the loop on the CPU with seed 0."""
    settings = OptimConfig.model_validate({"steps": 6, "warmup": 0, "lr": 0.05} | optim)
    return fit(method, settings, engine=cpu(), seed=0, hooks=hooks, restore=restore)  # pyright: ignore[reportArgumentType]


def record_metrics(into: list[dict[str, float]]) -> Hook:
    """Return a hook that collects the metrics of every step."""

    def hook(state: State) -> None:
        if state.metrics:
            into.append({"step": state.step, **state.metrics})

    return hook


class RunLine(Line):
    """`Line` as a run makes it."""

    def __init__(self, config: RunConfig[LineSettings], name: str, engine: Engine) -> None:
        super().__init__(config.method)
        self.engine = engine


RUN_LINE = Entry("a line", "tests.trainers.line:LineSettings", "tests.trainers.line:RunLine")
"""Entry to register, where whole runs are tried in a second."""
