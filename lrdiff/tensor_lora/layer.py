"""The adapted layer: what every kind of layer shares. Adapters by name, strengths, merging, deletion.

W'(g) = W0 + sum over active adapters of g_k [W0 (T_k - I) + s_k D_k],    always with the original W0
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from lrdiff.errors import NonFiniteError, TargetError
from lrdiff.tensor_lora import initialise
from lrdiff.tensor_lora.autograd import Plan, Rest, Turn, expand, full_precision
from lrdiff.tensor_lora.config import TensorLoraConfig
from lrdiff.tensor_lora.functional import RingShape, transform_shape


class BrokenAdapterError(NonFiniteError, ValueError):
    """Merging would write NaN or infinity. Also a ValueError, which is what peft raises here."""


class LayerShape(NamedTuple):
    """Sizes of a base layer: features or channels in and out, and kh * kw of a convolution (else 1)."""

    in_features: int
    out_features: int
    kernel: int


@dataclass(frozen=True, slots=True)
class Shapes:
    """The shapes of one adapter on one layer.

    Attributes:
        modes: Modes of the transform; () for none.
        rank: Ring rank R of the transform; 0 for none.
        out: Shape of the residual's out cores; None if it is no ring.
        into: Shape of its in cores.
        lora_rank: Rank r of a plain LoRA residual; 0 if it is none.
    """

    modes: tuple[int, ...]
    rank: int
    out: RingShape | None
    into: RingShape | None
    lora_rank: int

    @property
    def residual_rank(self) -> int:
        """Matrix rank of D: R^2 for a ring, r for plain LoRA, 0 for none."""
        return self.out.rank**2 if self.out else self.lora_rank


class TensorLoraLayer(BaseTunerLayer):
    """Base of the adapted layers; holds the adapters of one base layer.

    Every adapter has at most two parameters, both flat vectors (layout: `functional.py`): `tensor_lora_transform`, the
    cores of T, and `tensor_lora_residual`, the cores or factors of D. Two long vectors instead of nine small tensors
    make the optimizer's step four times shorter.

    Attributes:
        r: Adapter name -> rank of the residual as configured.
        scaling: Adapter name -> s, the factor of the residual.
        strength: Adapter name -> g; 0 is the base layer, 1 the adapter as trained.
        shapes: Adapter name -> shapes of its cores.
    """

    adapter_layer_names = ("tensor_lora_transform", "tensor_lora_residual")
    other_param_names = ("r", "scaling", "strength", "shapes")

    def __init__(self, base_layer: nn.Module, shape: LayerShape) -> None:
        self.base_layer = base_layer
        self.in_features, self.out_features, self.kernel = shape
        self.r: dict[str, int] = {}
        self.scaling: dict[str, float] = {}
        self.strength: dict[str, float] = {}
        self.shapes: dict[str, Shapes] = {}
        self.tensor_lora_transform = nn.ParameterDict({})
        self.tensor_lora_residual = nn.ParameterDict({})
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._original: Tensor | None = None
        self._merged_strength: dict[str, float] = {}

    def update_layer(self, adapter_name: str, config: TensorLoraConfig, r: int, alpha: float) -> None:
        """Add an adapter to this layer.

        Args:
            adapter_name: Its name.
            config: Its settings; modes of new widths are written into it.
            r: Rank of the residual here, after `rank_pattern`.
            alpha: Numerator of the residual's scale here, after `alpha_pattern`.

        Raises:
            ShapeError: A width of this layer has no usable modes.
        """
        shapes = shapes_of(config, LayerShape(self.in_features, self.out_features, self.kernel), r)
        init = config.init if config.init_weights else "random"
        self.r[adapter_name] = r
        self.scaling[adapter_name] = config.scale(r, alpha)
        self.strength[adapter_name] = 1.0
        self.shapes[adapter_name] = shapes
        if shapes.rank:
            cores = initialise.transform_cores(shapes.modes, shapes.rank, init)
            self.tensor_lora_transform[adapter_name] = nn.Parameter(cores)
        if shapes.out and shapes.into:
            cores = initialise.ring_cores(shapes.out.sizes, shapes.into.sizes, r, init)
            self.tensor_lora_residual[adapter_name] = nn.Parameter(cores)
        elif shapes.lora_rank:
            factors = initialise.lora_factors(self.out_features, self.in_features * self.kernel, r, init)
            self.tensor_lora_residual[adapter_name] = nn.Parameter(factors)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def transform_cores(self, adapter_name: str) -> list[Tensor]:
        """Return the cores of T in the paper's layout, [I_d, I_d, R, R] each. Empty if there is no transform."""
        modes, rank = self.shapes[adapter_name].modes, self.shapes[adapter_name].rank
        if not rank:
            return []
        cores = transform_shape(modes, rank).cores(self.tensor_lora_transform[adapter_name])
        return [core.view(mode, mode, rank, rank) for core, mode in zip(cores, modes, strict=True)]

    def plan(self, names: list[str], strength: dict[str, float]) -> tuple[Plan, list[Tensor]]:
        """Return what the named adapters do together, and their cores in the order `autograd.py` wants."""
        turning = [name for name in names if self.shapes[name].rank]
        resting = [name for name in names if self.shapes[name].residual_rank]
        turns = tuple(Turn(self.shapes[name].modes, self.shapes[name].rank, strength[name]) for name in turning)
        rests = tuple(self._rest(name, self.scaling[name] * strength[name]) for name in resting)
        flats = [self.tensor_lora_transform[name] for name in turning]
        flats += [self.tensor_lora_residual[name] for name in resting]
        return Plan(turns, rests), flats

    def residual_factors(self, adapter_name: str) -> tuple[Tensor, Tensor] | None:
        """Return up [K, out] and down [K, in * kernel] with up^T down = s D, whatever the strength; None for no D."""
        if not self.shapes[adapter_name].residual_rank:
            return None
        plan = Plan((), (self._rest(adapter_name, self.scaling[adapter_name]),))
        _, up, down = expand(plan, [self.tensor_lora_residual[adapter_name]], torch.float32)
        assert up is not None
        assert down is not None
        return up, down

    def _rest(self, name: str, scale: float) -> Rest:
        shapes = self.shapes[name]
        widths = self.out_features, self.in_features * self.kernel
        return Rest(shapes.residual_rank, scale, widths, shapes.out, shapes.into)

    def set_scale(self, adapter: str, scale: float) -> None:
        """Set the strength g of an adapter; layers that do not hold it ignore the call, as in peft."""
        if not math.isfinite(scale):
            raise ValueError(f"the strength of adapter {adapter!r} must be a finite number, not {scale}")
        if adapter in self.shapes:
            self.strength[adapter] = float(scale)

    def scale_layer(self, scale: float) -> None:
        """Multiply the strength of every active adapter."""
        for name in self._held(self.active_adapters):
            self.strength[name] *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        """Undo `scale_layer`; without a number set the strength of every active adapter to 1."""
        if scale == 0:
            raise ValueError("a layer scaled by 0 cannot be unscaled by division; use set_scale")
        for name in self._held(self.active_adapters):
            self.strength[name] = 1.0 if scale is None else self.strength[name] / scale

    @torch.no_grad()
    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """Return g [W0 (T - I) + s D] in the shape and dtype of the base weight, from the original W0."""
        weight = self._float_weight()
        delta = self._delta(self._original_weight(), adapter_name, self.strength)
        return delta.to(weight.device, weight.dtype)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write the adapters into the base weight, in float32. A copy of the original stays in CPU memory.

        Adapters merged one after another give what merging them together gives.

        Args:
            safe_merge: Check the result before anything is written.
            adapter_names: Which; by default the active ones.

        Raises:
            BrokenAdapterError: `safe_merge` found NaN or infinity; nothing was changed.
            TargetError: The base weight is quantised.
        """
        names = self._held(check_adapters_to_merge(self, adapter_names))
        if not names:
            return
        weight = self._float_weight()
        original = self._original_weight()
        merged = original.clone()
        strength = self._merged_strength | {name: self.strength[name] for name in names}
        for name in strength:
            delta = self._delta(original, name, strength)
            if safe_merge and not bool(torch.isfinite(delta).all()):
                raise BrokenAdapterError(
                    f"NaNs detected in the merged weights. The adapter {name} seems to be broken; nothing was merged"
                )
            merged += delta
        written = merged.to(weight.dtype)
        if safe_merge and not bool(torch.isfinite(written).all()):
            raise BrokenAdapterError(f"the merged weight is too large for {weight.dtype}; nothing was merged")
        if self._original is None:
            self._original = weight.detach().to("cpu", copy=True)
        weight.data = written
        self.merged_adapters.extend(names)
        self._merged_strength = strength

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the original base weight back, bit for bit."""
        if self._original is None:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        weight = self._float_weight()
        weight.data = self._original.to(weight.device, weight.dtype)
        self._original = None
        self._merged_strength = {}
        self.merged_adapters.clear()

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter from this layer. Raises `TargetError` while it is merged."""
        if adapter_name in self.merged_adapters:
            raise TargetError(f"adapter {adapter_name!r} is merged into the base weight; unmerge it before deleting it")
        super().delete_adapter(adapter_name)

    def _held(self, names: list[str]) -> list[str]:
        return [name for name in names if name in self.shapes]

    def _working(self) -> list[str]:
        """Names of the adapters that change the output now."""
        return [name for name in self._held(self.active_adapters) if self.strength[name] != 0]

    def _float_weight(self) -> Tensor:
        weight = getattr(self.get_base_layer(), "weight", None)
        if isinstance(weight, Tensor) and weight.is_floating_point() and weight.element_size() > 1:
            return weight
        kind = getattr(weight, "dtype", "no tensor")
        raise TargetError(
            f"the weight of {type(self.get_base_layer()).__name__} is quantised ({kind}): adapters work on it but "
            "cannot be merged into it; load the base model in float16, bfloat16 or float32 to merge"
        )

    def _original_weight(self) -> Tensor:
        """Return the base weight without merged adapters, float32 (float64 for float64), on the base's device."""
        weight = self._float_weight()
        original = weight if self._original is None else self._original.to(weight.device)
        return original.to(torch.promote_types(weight.dtype, torch.float32))

    def _delta(self, original: Tensor, name: str, strength: dict[str, float]) -> Tensor:
        """Return g [W0 (T - I) + s D] for W0 = `original`, [out, in] or [out, in, kh, kw]."""
        delta = torch.zeros_like(original)
        matrix, up, down = expand(*self.plan([name], strength), original.dtype)
        with full_precision(original.device.type):
            if matrix is not None:
                delta += torch.einsum("oi...,ij->oj...", original, matrix.to(original.device))
            if up is not None and down is not None:
                delta += torch.mm(up.t(), down).view_as(original).to(original.device)
        return delta


def shapes_of(config: TensorLoraConfig, shape: LayerShape, r: int) -> Shapes:
    """Work out the shapes of an adapter on a layer; modes of new widths are written into the config.

    Args:
        config: The adapter's settings.
        shape: Sizes of the base layer.
        r: Rank of the residual.

    Raises:
        ShapeError: A width that needs modes has none.
    """
    modes = config.modes_of(shape.in_features) if config.transform_rank else ()
    out = into = None
    if config.residual == "ring":
        out = RingShape(config.modes_of(shape.out_features), r)
        into = RingShape(config.modes_of(shape.in_features) + ((shape.kernel,) if shape.kernel > 1 else ()), r)
    return Shapes(modes, config.transform_rank, out, into, r if config.residual == "lora" else 0)
