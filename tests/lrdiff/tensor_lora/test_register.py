"""The extension of peft's closed type list: works, twice, in a fresh process, and fails clearly elsewhere."""

from __future__ import annotations

import enum
import importlib
import pickle
import subprocess
import sys

import peft.mapping
import pytest
from peft import PeftType

from lrdiff.errors import BackendError
from lrdiff.tensor_lora import TensorLoraConfig, TensorLoraModel
from lrdiff.tensor_lora import register as registering


def run(code: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_the_package_is_cheap_and_naming_the_config_registers() -> None:
    out = run(
        "import sys, lrdiff.tensor_lora as t, lrdiff.tensor_lora.modes;"
        "print('torch' in sys.modules, 'peft' in sys.modules);"
        "print(t.TensorLoraConfig(target_modules=['a']).peft_type.value);"
        "print('TensorLoraModel' in dir(t))"
    )
    assert out.splitlines() == ["False False", "TENSOR_LORA", "True"]


def test_the_package_knows_only_its_names() -> None:
    import lrdiff.tensor_lora as package

    assert set(package.__all__) == set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        package.nothing  # noqa: B018


def test_registering_again_changes_nothing() -> None:
    before = list(PeftType)
    member = registering.register()
    assert registering.register() is member
    importlib.reload(registering)
    assert list(PeftType) == before
    assert before.count(member) == 1
    assert PeftType("TENSOR_LORA") is PeftType.TENSOR_LORA is member  # pyright: ignore[reportAttributeAccessIssue]
    assert pickle.loads(pickle.dumps(member)) is member
    assert peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING[member] is TensorLoraModel
    assert peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[member] is TensorLoraConfig
    assert peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING[member] == "tensor_lora_"


def test_the_prefix_is_no_lora_key() -> None:
    """diffusers reads ranks and targets from keys with `lora_A` and `lora_B`; ours must never look like them."""
    names = TensorLoraModel.tuner_layer_cls.adapter_layer_names
    assert all(name.startswith(TensorLoraModel.prefix) for name in names)
    assert not any("lora_A" in name or "lora_B" in name for name in names)


def test_an_enum_grows_by_one_working_member() -> None:
    class Kinds(enum.StrEnum):
        ONE = "ONE"

    member = registering.extend(Kinds, "two")
    assert list(Kinds) == [Kinds.ONE, member]
    assert Kinds("TWO") is member is Kinds["TWO"]
    assert member == "TWO"
    assert registering.extend(Kinds, "two") is member


@pytest.mark.parametrize("types", [object, dict, enum.Enum("Plain", ["ONE"])])
def test_another_kind_of_type_list_is_refused(types: object) -> None:
    with pytest.raises(BackendError, match=r"peft .* is not supported: .* pip install 'peft"):
        registering.extend(types, "two")


def test_an_enum_that_does_not_take_members_is_refused() -> None:
    class Meta(enum.EnumMeta):
        def __call__(cls, value: object, *args: object, **kwargs: object) -> object:
            raise ValueError(value)

    class Kinds(enum.StrEnum, metaclass=Meta):
        ONE = "ONE"

    with pytest.raises(BackendError, match="is not supported"):
        registering.extend(Kinds, "two")


def test_a_foreign_method_of_the_same_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING, PeftType["TENSOR_LORA"], object)
    with pytest.raises(BackendError, match="already has a method named"):
        registering.register()


def test_a_peft_that_refuses_the_registration_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for table in ("PEFT_TYPE_TO_TUNER_MAPPING", "PEFT_TYPE_TO_CONFIG_MAPPING"):
        monkeypatch.delitem(getattr(peft.mapping, table), PeftType["TENSOR_LORA"])
    monkeypatch.setattr(TensorLoraModel, "prefix", "another_")
    with pytest.raises(BackendError, match=r"register_peft_method refused .*pip install"):
        registering.register()
