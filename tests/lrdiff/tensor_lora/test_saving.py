"""Save and load: the same output from any loader, in a fresh process, with old modes; loud when a file does not fit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file

from lrdiff.tensor_lora import TensorLoraConfig
from tests.lrdiff.tensor_lora.models import conv_net, draw, layers, mlp, settings

NETS: dict[str, tuple[Any, list[str], tuple[int, ...]]] = {
    "mlp": (mlp, ["lin0", "lin1"], (4, 12)),
    "conv": (conv_net, ["conv0", "conv3"], (2, 4, 8, 8)),
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("residual", ["ring", "lora", "none"])
def test_save_and_load_give_the_same_output(net: str, low_cpu_mem_usage: bool, residual: str, tmp_path: Path) -> None:
    make, targets, shape = NETS[net]
    scale: dict[str, Any] = {} if residual == "none" else {"alpha": 2.5, "use_rslora": False}
    model = get_peft_model(make(), settings(targets, residual=residual, **scale))
    out = model(draw(*shape))
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(make(), str(tmp_path), low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(loaded(draw(*shape)), out)
    assert not any(p.requires_grad for p in loaded.parameters())
    assert not any(p.is_meta for p in loaded.parameters())
    keys = load_file(tmp_path / "adapter_model.safetensors").keys()
    assert all("tensor_lora_" in key for key in keys)


def test_the_adapters_name_is_not_in_the_file(tmp_path: Path) -> None:
    x = draw(4, 12)
    files = {}
    for name in ("default", "other"):
        model = get_peft_model(mlp(), settings(), adapter_name=name)
        model.save_pretrained(str(tmp_path / name), selected_adapters=[name])
        folder = tmp_path / name if name == "default" else tmp_path / name / name
        files[name] = (load_file(folder / "adapter_model.safetensors"), model(x))
    assert files["default"][0].keys() == files["other"][0].keys()


def test_names_that_contain_each_other(tmp_path: Path) -> None:
    """ "adapter" is part of "adapter-1" is part of "my-adapter-1"."""
    names = ["adapter", "adapter-1", "my-adapter-1"]
    torch.manual_seed(0)
    model, x = get_peft_model(mlp(), settings(), adapter_name=names[0]), draw(4, 12)
    for name in names[1:]:
        model.add_adapter(name, settings())
    outputs = {}
    for name in names:
        model.set_adapter(name)
        outputs[name] = model(x)
    model.save_pretrained(str(tmp_path))
    for name in names:
        loaded = PeftModel.from_pretrained(mlp(), str(tmp_path / name), adapter_name="x")
        assert torch.equal(loaded(x), outputs[name])
        state = get_peft_model_state_dict(model, adapter_name=name)
        assert len(state) == 4
        assert not any(f".{other}" in key.rpartition(".tensor")[2] for other in names for key in state)


def test_several_files_into_one_model(tmp_path: Path) -> None:
    x, outputs = draw(4, 12), {}
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(20 + seed)
        net = mlp()
        torch.manual_seed(20 + seed)
        model = get_peft_model(net, settings(r=1 + seed), adapter_name=name)
        outputs[name] = model(x)
        model.save_pretrained(str(tmp_path))
    model = PeftModel.from_pretrained(mlp(), str(tmp_path / "one"), adapter_name="one")
    model.load_adapter(str(tmp_path / "two"), adapter_name="two")
    for name, out in outputs.items():
        model.set_adapter(name)
        assert torch.equal(model(x), out)


def test_a_state_dict_finds_its_layers_without_target_names() -> None:
    source = inject_adapter_in_model(settings(), mlp())
    state = get_peft_model_state_dict(source)
    target = mlp()
    config = settings(["lin0", "lin1"])
    inject_adapter_in_model(config, target, low_cpu_mem_usage=True, state_dict=state)
    assert all(p.is_meta for layer in layers(target) for p in layer.tensor_lora_transform.values())
    result = set_peft_model_state_dict(target, state, low_cpu_mem_usage=True)
    assert not result.unexpected_keys
    assert torch.equal(target(draw(4, 12)), source(draw(4, 12)))


def test_a_fresh_process_gives_the_same_output(tmp_path: Path) -> None:
    model = get_peft_model(mlp(), settings(alpha=2.0, rank_pattern={"lin1": 2}))
    model.save_pretrained(str(tmp_path))
    torch.save({"base": mlp().state_dict(), "out": model(draw(4, 12)).detach()}, tmp_path / "expected.pt")
    code = f"""
import torch
import lrdiff.tensor_lora.register
from peft import PeftModel
from tests.lrdiff.tensor_lora.models import Mlp, draw
kept = torch.load({str(tmp_path / "expected.pt")!r}, weights_only=True)
net = Mlp().eval()
net.load_state_dict(kept["base"])
print(torch.equal(PeftModel.from_pretrained(net, {str(tmp_path)!r})(draw(4, 12)), kept["out"]))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "True"


def test_a_file_with_other_modes_than_todays_rule_still_loads(tmp_path: Path) -> None:
    """As if the rule had changed since the file was written: the file's own modes count."""
    model = get_peft_model(mlp(), settings(modes={12: (6, 2), 30: (2, 15), 8: (4, 2)}))
    out = model(draw(4, 12))
    model.save_pretrained(str(tmp_path))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["modes"]["12"] == [6, 2]
    assert torch.equal(PeftModel.from_pretrained(mlp(), str(tmp_path))(draw(4, 12)), out)


def test_a_file_for_other_layers_is_refused(tmp_path: Path) -> None:
    get_peft_model(mlp(), settings()).save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match="not found in the base model"):
        PeftModel.from_pretrained(conv_net(), str(tmp_path))


def test_a_file_of_other_sizes_is_refused(tmp_path: Path) -> None:
    get_peft_model(mlp(), settings()).save_pretrained(str(tmp_path))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"r": 2}))
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(mlp(), str(tmp_path))


def test_unexpected_and_missing_keys_are_reported() -> None:
    model = inject_adapter_in_model(TensorLoraConfig(target_modules=["lin0", "lin1"]), mlp())
    state = get_peft_model_state_dict(model)
    state["lin9.tensor_lora_transform"] = state.pop("lin0.tensor_lora_transform")
    result = set_peft_model_state_dict(model, state)
    assert result.unexpected_keys == ["lin9.tensor_lora_transform"]
    assert "lin0.tensor_lora_transform.default" in result.missing_keys
