"""The residual as plain LoRA: exact, loadable by peft and diffusers; the transform is never dropped in silence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora.conversion import convert_to_lora

from lrdiff.errors import ConfigError, TargetError
from lrdiff.tensor_lora import export_residual
from tests.lrdiff.tensor_lora.models import ATTENTION, conv_net, draw, layers, mlp, settings, tiny_unet, unet_inputs

NETS: dict[str, tuple[Any, list[str], tuple[int, ...]]] = {
    "mlp": (mlp, ["lin0", "lin1"], (4, 12)),
    "conv": (conv_net, ["conv0", "conv1"], (2, 4, 8, 8)),
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(
    "changes", [{"residual": "ring", "rank_pattern": {"lin1|conv1": 2}}, {"residual": "lora"}], ids=str
)
@pytest.mark.filterwarnings("ignore:The following rank_pattern")
def test_the_export_computes_what_the_residual_computes(net: str, changes: dict[str, Any]) -> None:
    make, targets, shape = NETS[net]
    model = get_peft_model(make(), settings(targets, transform_rank=0, alpha=1.7, **changes))
    export = export_residual(model)
    assert set(export.left_out.values()) == {0.0}
    assert export.config.r == (9 if changes["residual"] == "ring" else 3)
    plain = inject_adapter_in_model(export.config, make())
    result = set_peft_model_state_dict(plain, export.tensors)
    assert not result.unexpected_keys
    torch.testing.assert_close(plain(draw(*shape)), model(draw(*shape)), rtol=1e-4, atol=1e-5)


def test_diffusers_loads_the_export() -> None:
    unet, plain = tiny_unet(), tiny_unet()
    unet.add_adapter(settings(ATTENTION, transform_rank=0), "one")
    export = export_residual(unet, "one")
    plain.load_lora_adapter(export.tensors, prefix=None, adapter_name="plain")
    sample, timestep, text = unet_inputs()
    expected, found = unet(sample, timestep, text).sample, plain(sample, timestep, text).sample
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_transform_is_only_dropped_on_request_and_its_size_is_told() -> None:
    model = get_peft_model(mlp(), settings())
    with pytest.raises(ConfigError, match=r"has a transform, which plain LoRA cannot hold \(.*drop_transform=True"):
        export_residual(model)
    export = export_residual(model, drop_transform=True)
    assert export.left_out.keys() == {"lin0", "lin1"}
    for layer, told in zip(layers(model), export.left_out.values(), strict=True):
        eye = torch.eye(layer.in_features)
        layer.set_scale("default", 1.0)
        layer.tensor_lora_residual["default"].data.zero_()
        weight = layer.get_base_layer().weight
        assert isinstance(weight, torch.Tensor)
        turned = torch.linalg.lstsq(weight.double(), layer.get_delta_weight("default").double()).solution
        assert told > 0
        if weight.shape[0] >= weight.shape[1]:
            assert told == pytest.approx((turned.norm() / eye.norm()).item(), rel=1e-3)


def test_exporting_nothing_is_refused() -> None:
    with pytest.raises(TargetError, match="no layer"):
        export_residual(mlp())
    with pytest.raises(ConfigError, match="has no residual"):
        export_residual(get_peft_model(mlp(), settings(residual="none")), drop_transform=True)


@pytest.mark.parametrize("name", ["conv2", "conv3"])
def test_a_convolution_that_plain_lora_gets_wrong_is_refused(name: str) -> None:
    model = get_peft_model(conv_net(), settings([name], transform_rank=0))
    with pytest.raises(TargetError, match=f"layer '{name}' has dilation .* and padding mode"):
        export_residual(model)


def test_pefts_own_conversion_approximates_the_whole_change() -> None:
    model = get_peft_model(mlp(), settings())
    config, state = convert_to_lora(model, rank=8)
    plain = inject_adapter_in_model(config, mlp())
    set_peft_model_state_dict(plain, state)
    x = draw(64, 12)
    error, change = (plain(x) - model(x)).square().mean(), (mlp()(x) - model(x)).square().mean()
    assert error < 0.1 * change
