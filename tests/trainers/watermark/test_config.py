"""Settings of the watermark: secrets stay out, and nothing is without effect."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tests.trainers.watermark.conftest import Configure
from trainers.config import describe_errors
from trainers.registry import run_config_class
from trainers.watermark.config import WatermarkRun

BITS = "010110100101101001011010"


def test_the_registry_gives_the_runs_own_defaults() -> None:
    config = run_config_class("watermark")(method={})
    assert isinstance(config, WatermarkRun)
    assert not config.needs_images
    assert (config.method.r, config.method.alpha, config.method.target) == (4, 32.0, "decoder-last-block")


def test_settings_of_one_table_keep_the_others_defaults() -> None:
    config = WatermarkRun.model_validate({"method": {}, "optim": {"steps": 7}})
    assert (config.optim.steps, config.optim.lr) == (7, WatermarkRun(method={}).optim.lr)  # pyright: ignore


def test_bits_in_place_of_an_id_are_refused_without_being_repeated() -> None:
    with pytest.raises(ValidationError) as caught:
        WatermarkRun.model_validate({"method": {"key": BITS}})
    assert "method.bits_file" in caught.value.errors()[0]["msg"]
    assert BITS not in caught.value.errors()[0]["msg"]


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"method": {"bits_file": "a.txt", "key": "0a1b2c"}}, "bits_file leaves key"),
        ({"method": {"bits_file": "a.txt", "owner": "me"}}, "bits_file leaves owner"),
        ({"method": {"key": "0a1b2c", "owner": "me"}}, "key leaves owner"),
        ({"method": {"image_weight": 0.2}}, "weighting=dlws leaves image_weight"),
        ({"method": {"registry": "postgresql://me:secret@host/keys"}}, "holds a password"),
        ({"method": {"target_accuracy": 1.0}}, "less than 1"),
        ({"method": {}, "data": {"prompt": "a cat"}}, "data.prompt has no effect"),
        ({"method": {}, "data": {"flip": True}}, "data.flip has no effect"),
        ({"method": {"patience": 5}, "watch": {"evaluate_every": 0}}, "never measured"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError) as caught:
        WatermarkRun.model_validate(settings)
    assert word in describe_errors(caught.value)


def test_a_registry_without_password_and_a_run_with_a_key_are_as_they_are(configure: Configure) -> None:
    WatermarkRun.model_validate({"method": {"registry": "postgresql://me@host/keys"}})
    config = configure()
    assert config.settled() is config
