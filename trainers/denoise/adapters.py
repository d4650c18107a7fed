"""Settings of peft's adapters: plain LoRA, and others to compare with. No torch here.

Each names the settings that its kind has; all else is peft's default. Ranks are small, since that is what is compared.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le
from pydantic import PositiveInt

from trainers.denoise.config import DenoiseSettings

Dropout = Annotated[float, Ge(0.0), Le(0.9)]


class LoraSettings(DenoiseSettings):
    """Plain low-rank adapters (arXiv 2106.09685) through peft."""

    adapter: ClassVar[str] = "lora"

    r: PositiveInt = 4
    """Rank of the update."""

    alpha: PositiveInt = 4
    """Scale of the update: s = alpha / r."""

    dropout: Dropout = 0.0
    """Share of the adapter's inputs that are dropped while training."""

    def peft(self, layers: list[str]) -> Any:
        """Return the peft configuration for these layer names."""
        from peft import LoraConfig

        return LoraConfig(
            target_modules=layers, r=self.r, lora_alpha=self.alpha, lora_dropout=self.dropout, bias="none"
        )


class DoraSettings(LoraSettings):
    """LoRA with the length of every weight column learned apart from its direction (arXiv 2402.09353)."""

    def peft(self, layers: list[str]) -> Any:
        """Return the peft configuration for these layer names."""
        config = super().peft(layers)
        config.use_dora = True
        return config


class LohaSettings(DenoiseSettings):
    """The elementwise product of two low-rank updates (arXiv 2108.06098)."""

    adapter: ClassVar[str] = "loha"

    r: PositiveInt = 4
    """Rank of each factor; that of the product is up to its square."""

    alpha: PositiveInt = 4
    """Scale of the update: s = alpha / r."""

    dropout: Dropout = 0.0
    """Share of the update's rows that are dropped while training."""

    def peft(self, layers: list[str]) -> Any:
        """Return the peft configuration for these layer names."""
        from peft import LoHaConfig

        return LoHaConfig(target_modules=layers, r=self.r, alpha=self.alpha, rank_dropout=self.dropout)


class LokrSettings(DenoiseSettings):
    """A Kronecker product, one factor of it of low rank (arXiv 2309.14859)."""

    adapter: ClassVar[str] = "lokr"

    r: PositiveInt = 4
    """Rank of the larger factor; where it is not below half of the factor's side, the factor is whole."""

    alpha: PositiveInt = 4
    """Scale of the update: s = alpha / r."""

    factor: Annotated[int, Ge(-1)] = -1
    """Side of the smaller factor; -1 takes the two as equal as they can be."""

    dropout: Dropout = 0.0
    """Share of the update's rows that are dropped while training."""

    def peft(self, layers: list[str]) -> Any:
        """Return the peft configuration for these layer names."""
        from peft import LoKrConfig

        return LoKrConfig(
            target_modules=layers,
            r=self.r,
            alpha=self.alpha,
            decompose_factor=self.factor,
            rank_dropout=self.dropout,
        )


class OftSettings(DenoiseSettings):
    """A rotation of the layer's input, block by block (arXiv 2306.07280).

    peft also has a dropout of blocks for it; with it, weights came out as without, so it is no setting here.
    """

    adapter: ClassVar[str] = "oft"

    targets: Literal["attention", "attention+ff"] = "attention"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Which layers of the denoiser are adapted: attention projections, also feed-forward. Not convolutions: peft's
    form of it changes them before the first step."""

    block_size: PositiveInt = 4
    """Side of a block; it must divide the input width of every layer. Parameters grow with it."""

    shared: bool = False
    """One block for all parts of a layer's input."""

    def peft(self, layers: list[str]) -> Any:
        """Return the peft configuration for these layer names."""
        from peft import OFTConfig

        return OFTConfig(
            target_modules=layers,
            r=0,
            oft_block_size=self.block_size,
            block_share=self.shared,
        )


class BoftSettings(DenoiseSettings):
    """Rotations of the input and a scale of the output (arXiv 2311.06243).

    Differs from the paper: one rotation. peft multiplies several only with a CUDA extension that it compiles, and
    falls back to one in silence.
    """

    adapter: ClassVar[str] = "boft"

    block_size: PositiveInt = 4
    """Side of a block; it must divide the input width of every layer."""

    dropout: Dropout = 0.0
    """Share of the blocks that are left unrotated while training."""

    def peft(self, layers: list[str]) -> Any:
        """Return the peft configuration for these layer names."""
        from peft import BOFTConfig

        return BOFTConfig(
            target_modules=layers,
            boft_block_size=self.block_size,
            boft_block_num=0,
            boft_n_butterfly_factor=1,
            boft_dropout=self.dropout,
        )
