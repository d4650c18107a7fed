"""The adapter's settings, a peft config. They are stored beside the weights and decide how those are read."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from peft import PeftConfig

from lrdiff.errors import ConfigError
from lrdiff.tensor_lora.modes import check_modes, factorise

Residual = Literal["ring", "lora", "none"]
Init = Literal["broken-symmetry", "paper"]
RESIDUAL_ONLY = ("r", "alpha", "use_rslora", "rank_pattern", "alpha_pattern")
"""Settings that act on the residual alone."""


@dataclass
class TensorLoraConfig(PeftConfig):
    """Settings of a tensor-lora adapter: `W' = W0 T + s D` with a tensor-ring transform T and a residual D.

    The paper's "TLoRA (2, 6)" is the default; "TLoRA* (2, 4)" is `residual="lora", r=4`; its SDXL setting is
    `transform_rank=1, r=2`.

    Args:
        target_modules: Names of the layers to adapt: a list of name endings, a regular expression, or "all-linear".
        exclude_modules: Names of layers to leave out, matched the same way.
        r: Rank of the residual: ring rank for "ring" (matrix rank r^2), matrix rank for "lora". At least 1.
        transform_rank: Ring rank R of the transform; 0 switches the transform off.
        residual: "ring" (tensor ring), "lora" (two thin matrices) or "none".
        alpha: Numerator of the residual's scale s. It never scales the transform.
        use_rslora: s = alpha / sqrt(r) if true, else alpha / r.
        init: "broken-symmetry" starts from T = I with a usable ring rank. "paper" starts from the paper's cores I / R,
            whose slices stay equal for ever: rank R then learns what rank 1 learns at R^2 times the parameters. Also
            decides the spread of a ring residual's cores.
        init_weights: False starts from random cores instead, T != I and D != 0. For tests.
        modes: Modes of every layer width in use, for example `{320: (4, 8, 10)}`. Missing widths are factorised when
            the adapter is put into a model and are then written here, so that a file keeps its modes.
        rank_pattern: Layer name or regular expression -> another r.
        alpha_pattern: Layer name or regular expression -> another alpha.
        layers_to_transform: Only these layer indices of a `ModuleList`.
        layers_pattern: Name of that `ModuleList`.
        modules_to_save: Other modules to train and to save as a whole.

    Raises:
        ConfigError: A value is out of range, or the settings leave nothing to train.
    """

    target_modules: list[str] | set[str] | str | None = field(default=None, metadata={"help": "Layers to adapt."})
    exclude_modules: list[str] | set[str] | str | None = field(default=None, metadata={"help": "Layers to leave out."})
    r: int = field(default=6, metadata={"help": "Rank of the residual."})
    transform_rank: int = field(default=2, metadata={"help": "Ring rank of the transform, 0 for none."})
    residual: Residual = field(default="ring", metadata={"help": "'ring', 'lora' or 'none'."})
    alpha: float = field(default=1.0, metadata={"help": "Numerator of the residual's scale."})
    use_rslora: bool = field(default=True, metadata={"help": "Divide alpha by sqrt(r) instead of r."})
    init: Init = field(default="broken-symmetry", metadata={"help": "'broken-symmetry' or 'paper'."})
    init_weights: bool = field(default=True, metadata={"help": "False starts from random cores."})
    modes: dict[int, tuple[int, ...]] = field(default_factory=dict, metadata={"help": "Layer width -> modes."})
    rank_pattern: dict[str, int] = field(default_factory=dict, metadata={"help": "Layer -> another r."})
    alpha_pattern: dict[str, float] = field(default_factory=dict, metadata={"help": "Layer -> another alpha."})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "Only these layer indices."})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "Name of the list of layers."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules to train as a whole."})

    def __post_init__(self) -> None:
        super().__post_init__()
        # Here and not at the top: registering needs this module.
        from lrdiff.tensor_lora.register import register

        self.peft_type = register()
        self.target_modules = _as_set(self.target_modules)
        self.exclude_modules = _as_set(self.exclude_modules)
        self.modes = {int(width): check_modes(int(width), tuple(modes)) for width, modes in self.modes.items()}
        self._check()

    def modes_of(self, width: int) -> tuple[int, ...]:
        """Return the modes of a layer width, factorising and remembering them at the first question.

        Raises:
            ShapeError: The width is prime or too uneven.
        """
        if width not in self.modes:
            self.modes[width] = factorise(width)
        return self.modes[width]

    def scale(self, r: int, alpha: float) -> float:
        """Return s, the factor of the residual (paper: alpha / sqrt(r), as in rsLoRA)."""
        return alpha / math.sqrt(r) if self.use_rslora else alpha / r

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values; modes become lists, as they do in JSON."""
        values = super().to_dict()
        values["modes"] = {width: list(modes) for width, modes in self.modes.items()}
        return values

    def _check(self) -> None:
        if self.residual not in get_args(Residual):
            raise ConfigError(f"residual is {self.residual!r}; choose one of {get_args(Residual)}")
        if self.init not in get_args(Init):
            raise ConfigError(f"init is {self.init!r}; choose one of {get_args(Init)}")
        if not _is_count(self.transform_rank, 0):
            raise ConfigError(f"transform_rank is {self.transform_rank!r}; give 0 (no transform) or a positive integer")
        for where, rank in {"r": self.r, **self.rank_pattern}.items():
            if not _is_count(rank, 1):
                raise ConfigError(f"{where}: rank is {rank!r}; give a positive integer")
        for where, alpha in {"alpha": self.alpha, **self.alpha_pattern}.items():
            if not isinstance(alpha, int | float) or not math.isfinite(alpha) or alpha <= 0:
                raise ConfigError(f"{where}: alpha is {alpha!r}; give a positive number")
        if self.transform_rank == 0 and self.residual == "none":
            raise ConfigError("transform_rank=0 with residual='none' leaves nothing to train; switch one of them on")
        self._check_unused()
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ConfigError("layers_to_transform cannot be used when target_modules is a regular expression")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ConfigError("layers_pattern needs layers_to_transform")

    def _check_unused(self) -> None:
        """Refuse settings of a part that is switched off: they would change nothing."""
        off = {
            "residual='none'": RESIDUAL_ONLY if self.residual == "none" else (),
            # The start of a ring residual follows `init` too.
            "transform_rank=0": ("init",) if self.transform_rank == 0 and self.residual == "lora" else (),
        }
        for switch, names in off.items():
            changed = [name for name in names if getattr(self, name) != _default(name)]
            if changed:
                raise ConfigError(f"{switch} leaves {', '.join(changed)} without effect; leave out one or the other")


def _default(name: str) -> Any:
    field = TensorLoraConfig.__dataclass_fields__[name]
    return field.default_factory() if callable(field.default_factory) else field.default


def _as_set(names: list[str] | set[str] | str | None) -> set[str] | str | None:
    return names if names is None or isinstance(names, str) else set(names)


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
