"""Settings: what is refused, what is stored, what comes back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from peft import PeftConfig, get_peft_model

from lrdiff.errors import ConfigError, ShapeError
from lrdiff.tensor_lora import TensorLoraConfig
from tests.lrdiff.tensor_lora.models import layers, mlp, settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 0}, "r: rank is 0"),
        ({"r": 2.5}, "r: rank is 2.5"),
        ({"r": True}, "rank is True"),
        ({"transform_rank": -1}, "transform_rank is -1"),
        ({"residual": "tucker"}, "residual is 'tucker'"),
        ({"init": "zero"}, "init is 'zero'"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"alpha": "1"}, "alpha is '1'"),
        ({"rank_pattern": {"lin0": 0}}, "lin0: rank is 0"),
        ({"alpha_pattern": {"lin0": -1.0}}, "lin0: alpha is -1.0"),
        ({"transform_rank": 0, "residual": "none"}, "nothing to train"),
        ({"residual": "none", "r": 4, "alpha": 2.0}, "residual='none' leaves r, alpha without effect"),
        ({"residual": "none", "rank_pattern": {"lin0": 2}}, "leaves rank_pattern without effect"),
        ({"transform_rank": 0, "residual": "lora", "init": "paper"}, "transform_rank=0 leaves init without effect"),
        ({"target_modules": ".*", "layers_to_transform": [0]}, "regular expression"),
        ({"layers_pattern": "blocks"}, "layers_pattern needs"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TensorLoraConfig(**{"target_modules": ["a"], **changes})


def test_wrong_modes_are_refused() -> None:
    with pytest.raises(ShapeError, match="do not multiply"):
        TensorLoraConfig(target_modules=["a"], modes={12: (3, 5)})


def test_stable_names_and_the_papers_defaults() -> None:
    config = TensorLoraConfig(target_modules=["a"], r=6, transform_rank=2, residual="ring", alpha=1.0, init="paper")
    default = TensorLoraConfig(target_modules=["a"])
    assert (default.r, default.transform_rank, default.residual, default.alpha) == (6, 2, "ring", 1.0)
    assert default.init == "broken-symmetry"
    assert config.target_modules == {"a"}


def test_a_file_keeps_everything_and_the_modes_that_were_used(tmp_path: Path) -> None:
    config = settings(
        r=2, transform_rank=1, alpha=3.0, use_rslora=False, rank_pattern={"lin1": 4}, alpha_pattern={"lin0": 2.0}
    )
    get_peft_model(mlp(), config)
    config.save_pretrained(str(tmp_path))
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    assert stored["modes"] == {"12": [2, 2, 3], "30": [2, 3, 5], "8": [2, 2, 2]}
    loaded = PeftConfig.from_pretrained(str(tmp_path))
    assert isinstance(loaded, TensorLoraConfig)
    assert loaded.modes == {12: (2, 2, 3), 30: (2, 3, 5), 8: (2, 2, 2)}
    assert loaded.to_dict() == config.to_dict()


def test_given_modes_win_over_the_rule() -> None:
    model = get_peft_model(mlp(), settings(modes={12: (3, 4)}))
    first = next(layers(model))
    assert first.shapes["default"].modes == (3, 4)
    assert first.tensor_lora_transform["default"].numel() == 4 * (9 + 16)


def test_patterns_change_rank_and_alpha_of_single_layers() -> None:
    config = settings(r=2, use_rslora=False, rank_pattern={"lin1": 4}, alpha_pattern={"lin.": 8.0})
    one, two = layers(get_peft_model(mlp(), config))
    assert (one.r["default"], two.r["default"]) == (2, 4)
    assert (one.scaling["default"], two.scaling["default"]) == (4.0, 2.0)
