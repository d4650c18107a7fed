"""The tuner: finds the target layers, checks all of them before it changes one, and wraps them."""

from __future__ import annotations

from collections.abc import Iterator

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, _maybe_include_all_linear_layers
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import get_pattern_key
from torch import nn

from lrdiff.errors import LrdiffError, TargetError
from lrdiff.tensor_lora.config import TensorLoraConfig
from lrdiff.tensor_lora.layer import TensorLoraLayer, shapes_of
from lrdiff.tensor_lora.modules import adapt, shape_of


class TensorLoraModel(BaseTuner):
    """A model with tensor-lora adapters; made by `peft.get_peft_model` and its relatives.

    Args:
        model: The base model, changed in place.
        peft_config: A `TensorLoraConfig`, or adapter name -> config.
        adapter_name: Name of the first adapter.
        low_cpu_mem_usage: Leave new parameters on the meta device until a state dict fills them.
        state_dict: Adapt the layers this state dict names, whatever the config says.
    """

    prefix: str = "tensor_lora_"
    tuner_layer_cls = TensorLoraLayer
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.copy()

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        """Check every target and settle its modes before the first layer is replaced.

        Raises:
            TargetError: A target is no Linear or Conv2d, or carries another kind of adapter.
            ShapeError: A width has no modes.
        """
        assert isinstance(peft_config, TensorLoraConfig)
        _maybe_include_all_linear_layers(peft_config, model)
        try:
            for name, module in _outer_modules(model):
                if self._check_target_module_exists(peft_config, name):
                    check_target(name, module, peft_config)
        except LrdiffError:
            # peft has entered the config already; without this the model would claim an adapter it does not hold.
            for name in [name for name, config in self.peft_config.items() if config is peft_config]:
                del self.peft_config[name]
            raise

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        assert isinstance(peft_config, TensorLoraConfig)
        r, alpha = ranks_at(peft_config, current_key)
        if isinstance(target, TensorLoraLayer):
            target.update_layer(adapter_name, peft_config, r, alpha)
            return
        check_target(current_key, target, peft_config)
        layer = adapt(target, adapter_name, peft_config, r, alpha)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)


def _outer_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module | BaseTunerLayer]]:
    """Yield all modules but the root and the insides of adapted layers."""
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if not name or name.startswith(inside):
            continue
        if isinstance(module, BaseTunerLayer):
            inside += (f"{name}.",)
        yield name, module


def ranks_at(config: TensorLoraConfig, key: str) -> tuple[int, float]:
    """Return r and alpha for a layer, after `rank_pattern` and `alpha_pattern`."""
    r = config.rank_pattern.get(get_pattern_key(list(config.rank_pattern), key), config.r)
    alpha = config.alpha_pattern.get(get_pattern_key(list(config.alpha_pattern), key), config.alpha)
    return r, alpha


def check_target(name: str, module: nn.Module | BaseTunerLayer, config: TensorLoraConfig) -> None:
    """Raise `TargetError` or `ShapeError`, naming the layer, if it cannot take this adapter."""
    if isinstance(module, BaseTunerLayer) and not isinstance(module, TensorLoraLayer):
        raise TargetError(
            f"layer {name!r} already carries an adapter of type {type(module).__module__}.{type(module).__name__}; a "
            "transform around another kind of adapter is refused. Fuse or remove that adapter, or choose other layers"
        )
    inner = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    try:
        shapes_of(config, shape_of(inner), ranks_at(config, name)[0])
    except LrdiffError as error:
        raise type(error)(f"layer {name!r}: {error}") from error


def check_nesting(model: nn.Module) -> None:
    """Raise `TargetError` if another kind of adapter sits on a layer that carries a tensor-lora adapter.

    peft lets a LoRA wrap an adapted layer without asking. The sum would be right until one of the two is merged: the
    transform would then act on the other's change too. Call this after injecting another kind of adapter.
    """
    for name, module in model.named_modules():
        inner = getattr(module, "base_layer", None)
        if isinstance(module, BaseTunerLayer) and isinstance(inner, BaseTunerLayer):
            kinds = isinstance(module, TensorLoraLayer), isinstance(inner, TensorLoraLayer)
            if any(kinds) and not all(kinds):
                raise TargetError(
                    f"layer {name!r} carries two kinds of adapters, {type(module).__module__} around "
                    f"{type(inner).__module__}; remove one of them or put them on different layers"
                )
