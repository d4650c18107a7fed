"""Make the adapter type known to peft, whose list of types is a closed enum.

The one place that changes peft's private parts. It adds the member `TENSOR_LORA`, checks that the enum
took it, and registers the classes. Doing it twice changes nothing. Importing this module registers.
"""

from __future__ import annotations

import enum
import importlib.metadata
from typing import Any

from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import register_peft_method

from lrdiff.errors import BackendError

NAME = "tensor_lora"
PREFIX = "tensor_lora_"


def register() -> Any:
    """Register the adapter type with peft, once.

    Returns:
        The enum member `PeftType.TENSOR_LORA`.

    Raises:
        BackendError: This peft cannot take an outside type, or knows another method of this name.
    """
    member = extend(PeftType)
    from lrdiff.tensor_lora.config import TensorLoraConfig
    from lrdiff.tensor_lora.model import TensorLoraModel

    known = PEFT_TYPE_TO_TUNER_MAPPING.get(member), PEFT_TYPE_TO_CONFIG_MAPPING.get(member)
    if known == (TensorLoraModel, TensorLoraConfig):
        return member
    if known != (None, None):
        raise BackendError(f"peft already has a method named {NAME!r}, made by {known}; update lrdiff")
    try:
        register_peft_method(name=NAME, config_cls=TensorLoraConfig, model_cls=TensorLoraModel, prefix=PREFIX)
    except (KeyError, TypeError, ValueError) as error:
        raise BackendError(_unsupported(f"register_peft_method refused ({error})")) from error
    return member


def extend(types: Any, name: str = NAME) -> Any:
    """Add a member to a closed string enum and check that it behaves like the others.

    Args:
        types: The enum class, `peft.PeftType`.
        name: Lower-case name; the member is its upper-case form.

    Returns:
        The member, new or already present.

    Raises:
        BackendError: The enum is built differently from what this function knows.
    """
    value = name.upper()
    if not (isinstance(types, enum.EnumMeta) and issubclass(types, str)):
        raise BackendError(_unsupported("its list of types is no enum of strings"))
    if value in types.__members__:
        return types[value]
    try:
        member: Any = str.__new__(types, value)  # pyright: ignore[reportCallIssue, reportArgumentType]
        member._name_ = value
        member._value_ = value
        types._member_names_.append(value)
        types._member_map_[value] = member
        types._value2member_map_[value] = member
        type.__setattr__(types, value, member)
        taken = types(value) is types[value] is getattr(types, value) and value in list(types)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BackendError(_unsupported(f"its enum of types cannot be extended ({error!r})")) from error
    if not taken:
        raise BackendError(_unsupported("its enum of types did not take the new member"))
    return member


def _unsupported(why: str) -> str:
    version = importlib.metadata.version("peft")
    return f"peft {version} is not supported: {why}. Install a supported one: pip install 'peft>=0.21.2,<0.22'"


register()
