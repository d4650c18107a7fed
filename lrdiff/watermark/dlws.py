"""Dynamic loss weights: how much the picture and the mark count, decided anew after every step.

EW-LoRA (arXiv 2410.20202v2) calls it the dynamic loss weight scheduler, DLWS. Both losses have a target, a PSNR `rho`
and a bit accuracy `mu`. A missed target raises the weight of its loss, the mark's first; targets that were held for
some steps in a row are raised. The paper's tables and text were known at second hand only, so the rules here are a
reconstruction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lrdiff.errors import ConfigError, ShapeError

FADE = 0.1
"""Factor on the mark's weight for each decibel below the floor."""
QUICK = 0.5
"""Share of the old average in the one that is held against the floor."""
FIELDS = (
    "image",
    "mark",
    "psnr",
    "accuracy",
    "held_image",
    "held_mark",
    "mean_error",
    "mean_accuracy",
    "updates",
    "quick_error",
)


@dataclass(frozen=True, slots=True)
class Rules:
    """The numbers of the scheduler. The defaults of the first seven are the paper's.

    Attributes:
        form: "paper", or "safe" with the changes that `LossWeights` lists.
        psnr: First target of the PSNR, in dB.
        accuracy: First target of the bit accuracy, in [0, 1].
        gamma: Increment of a weight; the mark's is raised by twice as much.
        psnr_step: Increment of the PSNR's target.
        accuracy_step: Increment of the accuracy's target.
        patience: Steps in a row for which a target must hold before it is raised.
        psnr_floor: PSNR in dB below which the safe form lets the mark fade.
        psnr_cap: Highest PSNR target of the safe form.
        accuracy_cap: Highest accuracy target of the safe form; below 1, since one wrong bit among thousands keeps an
            average below 1 for ever.
        smoothing: Share of the old average in the new one, for the safe form's averages.
        memory: Sum of both weights at which the safe form begins to forget.
    """

    form: Literal["safe", "paper"] = "safe"
    psnr: float = 30.0
    accuracy: float = 0.9
    gamma: float = 0.3
    psnr_step: float = 2.5
    accuracy_step: float = 0.08
    patience: int = 5
    psnr_floor: float = 26.0
    psnr_cap: float = 35.0
    accuracy_cap: float = 0.98
    smoothing: float = 0.9
    memory: float = 30.0

    def __post_init__(self) -> None:
        wrong = [
            name
            for name, fine in {
                "gamma": self.gamma > 0,
                "patience": self.patience >= 1,
                "accuracy_cap": 0 < self.accuracy_cap < 1,
                "psnr_floor": self.psnr_floor < self.psnr_cap,
                "psnr_cap": 0 < self.psnr_cap < math.inf,
                "smoothing": 0 <= self.smoothing < 1,
                "memory": self.memory > 2 * self.gamma + 1,
            }.items()
            if not fine
        ]
        if wrong:
            raise ConfigError(f"loss weights cannot follow {', '.join(f'{n} = {getattr(self, n)}' for n in wrong)}")


class LossWeights:
    """State of the scheduler. After each step `update` takes what was measured; `weights` go into the next loss.

        if   mu_t  < mu   lambda_mark  += 2 gamma
        elif rho_t < rho  lambda_image += gamma

    A counter counts the steps in a row in which its target held; a step that misses it sets it to zero. At `patience`
    the target is raised and the counter starts again. At the start lambda_image = 1 and lambda_mark = 0, and 2 gamma in
    the safe form, so that the first step already learns something.

    Differs from the paper in the safe form:
        - targets stop at a cap; the paper's accuracy goes from 0.90 to 1.06, is missed for ever, and its weight grows
          without bound;
        - rho_t and mu_t are moving averages (of the squared error, for the PSNR), so one batch decides nothing;
        - below a floor of the PSNR the image's weight is raised by 2 gamma, and the mark's fades by 10 for each missing
          decibel, whatever is read: where the mark's target is out of reach, the paper's rule spoils pictures without
          end (a small decoder's came down to 11 dB). The faded weight is back as soon as the PSNR is, which is averaged
          over two steps only: a weight that is halved for good, step by step and by an average of ten steps, swings
          (measured: between 30 and 38 dB, to the end);
        - the weights that are handed out sum to 1, and their sum inside is bounded: beyond `memory` both shrink alike,
          so old decisions fade and the last steps keep their say.

    Attributes:
        rules: The numbers.
        image: lambda_image, before normalising.
        mark: lambda_mark, before normalising.
        psnr: Present target rho, in dB.
        accuracy: Present target mu.
        held_image: Steps in a row that rho held.
        held_mark: Steps in a row that mu held.
    """

    def __init__(self, rules: Rules | None = None) -> None:
        self.rules = rules or Rules()
        # At the start no bit is read, so the mark's first increment is due before anything was measured.
        self.image, self.mark = 1.0, 0.0 if self.rules.form == "paper" else 2 * self.rules.gamma
        self.psnr, self.accuracy = self.rules.psnr, self.rules.accuracy
        if self.rules.form == "safe":
            self.psnr, self.accuracy = min(self.psnr, self.rules.psnr_cap), min(self.accuracy, self.rules.accuracy_cap)
        self.held_image = self.held_mark = 0.0
        self.mean_error = self.mean_accuracy = 0.0
        self.updates = self.quick_error = 0.0

    @property
    def weights(self) -> tuple[float, float]:
        """Weights of the image loss and of the bit loss."""
        if self.rules.form == "paper":
            return self.image, self.mark
        mark = self.mark * FADE ** max(0.0, self.rules.psnr_floor - self._quick_psnr())
        return self.image / (self.image + mark), mark / (self.image + mark)

    def update(self, psnr: float, accuracy: float) -> None:
        """Take the measurements of a step.

        Args:
            psnr: Of the marked pictures against those of the unmarked decoder, over the batch, pixels in [0, 1], in dB;
                infinite where they are equal.
            accuracy: Share of bits that were read right, in [0, 1].

        Raises:
            ShapeError: A measurement is NaN, or the accuracy is out of range.
        """
        if math.isnan(psnr) or not 0.0 <= accuracy <= 1.0:
            raise ShapeError(f"loss weights were given PSNR {psnr} and bit accuracy {accuracy}; give finite measures")
        rules = self.rules
        if rules.form == "safe":
            psnr, accuracy = self._smoothed(psnr, accuracy)
        if rules.form == "safe" and self._quick_psnr() < rules.psnr_floor:
            self.image += 2 * rules.gamma
        elif accuracy < self.accuracy:
            self.mark += 2 * rules.gamma
        elif psnr < self.psnr:
            self.image += rules.gamma
        self.held_mark = self.held_mark + 1 if accuracy >= self.accuracy else 0
        self.held_image = self.held_image + 1 if psnr >= self.psnr else 0
        if self.held_mark >= rules.patience:
            self.accuracy, self.held_mark = self.accuracy + rules.accuracy_step, 0
        if self.held_image >= rules.patience:
            self.psnr, self.held_image = self.psnr + rules.psnr_step, 0
        if rules.form == "safe":
            self._bound()

    def _smoothed(self, psnr: float, accuracy: float) -> tuple[float, float]:
        """Return moving averages, corrected for their start at zero."""
        keep = self.rules.smoothing
        self.updates += 1
        self.quick_error = QUICK * self.quick_error + (1 - QUICK) * 10 ** (-psnr / 10)
        self.mean_error = keep * self.mean_error + (1 - keep) * 10 ** (-psnr / 10)
        self.mean_accuracy = keep * self.mean_accuracy + (1 - keep) * accuracy
        seen = 1 - keep**self.updates
        return _decibels(self.mean_error / seen), self.mean_accuracy / seen

    def _quick_psnr(self) -> float:
        return _decibels(self.quick_error / (1 - QUICK**self.updates)) if self.updates else math.inf

    def _bound(self) -> None:
        self.psnr = min(self.psnr, self.rules.psnr_cap)
        self.accuracy = min(self.accuracy, self.rules.accuracy_cap)
        factor = min(1.0, self.rules.memory / (self.image + self.mark))
        self.image, self.mark = self.image * factor, self.mark * factor

    def state(self) -> Tensor:
        """Return everything that changes, float64, for a checkpoint."""
        return torch.tensor([float(getattr(self, name)) for name in FIELDS], dtype=torch.float64)

    def load_state(self, state: Tensor) -> None:
        """Take back what `state` returned. Raises `ShapeError` for another number of values."""
        if state.shape != (len(FIELDS),):
            raise ShapeError(f"the state of loss weights has {len(FIELDS)} numbers, not {list(state.shape)}")
        for name, value in zip(FIELDS, state.tolist(), strict=True):
            setattr(self, name, value)


def _decibels(error: float) -> float:
    return -10 * math.log10(error) if error > 0 else math.inf
