"""What every attention processor shares: its projection, its settings, what it refuses, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from lrdiff.errors import BackendError, ConfigError
from lrdiff.sla.joint import joint_attention
from lrdiff.sla.mixing import shares
from lrdiff.sla.operator import zero_projection
from lrdiff.sla.settings import SlaSettings
from lrdiff.sla.ulysses import over_processes

Listener = Callable[[Tensor, Tensor, int], None]
"""Told of the queries and keys of every call, [B, L, H, D] each, and how many tokens at their end are text."""


class SlaProcessor(nn.Module):
    """Base of the processors that replace diffusers' own in one attention layer.

    Projection and shares of the linear branch stay float32 when the model is cast. With `enabled` off the layer's own
    processor works, which is how a model is its own teacher.

    Raises:
        ConfigError: A call brings a mask, an IP-adapter or fused projections.
        BackendError: An attention backend of diffusers is set, or context parallelism that cannot be honoured.
    """

    ROTARY: ClassVar[str] = "image_rotary_emb"
    """What the layer's own processor calls its rotary embedding."""

    def __init__(self, heads: int, features: int, settings: SlaSettings, original: Any) -> None:
        """Take the number of heads, the features of each, the settings, and the processor that is replaced."""
        super().__init__()
        self.proj = zero_projection(features)
        self.mix = shares(heads, settings.mix) if settings.mix else None
        self.settings = settings
        self.enabled = True
        self.tokens = 0  # of the last call, text not counted
        self.listener: Listener | None = None
        self._original = (original,)  # in a tuple: not a part of this module, should it be one itself
        # diffusers writes to these only where they exist; a processor without them would ignore the request in silence,
        # and so would one that forgets what was asked for before it came.
        self._attention_backend: Any = getattr(original, "_attention_backend", None)
        self._parallel_config: Any = getattr(original, "_parallel_config", None)

    @property
    def original(self) -> Any:
        """The processor that was replaced."""
        return self._original[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keep_float32(x: Tensor) -> Tensor:
            moved = fn(x)
            return moved if moved.dtype == x.dtype else x.to(moved.device)

        return super()._apply(keep_float32, recurse)

    # diffusers reads the names of the arguments here and drops whatever it does not find, rotary embeddings included.
    def __call__(  # pyright: ignore[reportIncompatibleVariableOverride, reportIncompatibleMethodOverride]
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
        temb: Tensor | None = None,
        ip_hidden_states: Any = None,
        ip_adapter_masks: Any = None,
    ) -> Any:
        """Attend; the arguments and results are those of diffusers' processors."""
        given = {
            "encoder_hidden_states": encoder_hidden_states,
            "attention_mask": attention_mask,
            self.ROTARY: image_rotary_emb,
            "temb": temb,
            "ip_hidden_states": ip_hidden_states,
            "ip_adapter_masks": ip_adapter_masks,
        }
        given = {name: value for name, value in given.items() if value is not None}
        if not self.enabled:
            if self._parallel_config is not None:
                self._pass_on_parallelism()
            return self.original(attn, hidden_states, **given)
        self._check(attn, given)
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)

    def _check(self, attn: Any, given: dict[str, Any]) -> None:
        if "ip_hidden_states" in given or "ip_adapter_masks" in given:
            raise ConfigError("sparse-linear attention does not support IP-adapters: unload them")
        if getattr(attn, "fused_projections", False):
            raise ConfigError(
                "sparse-linear attention needs separate projections: call unfuse_qkv_projections() on the model first"
            )
        if self._attention_backend is not None:
            raise BackendError(
                "sparse-linear attention does not support diffusers' attention backends: take set_attention_backend() "
                "out"
            )

    def _pass_on_parallelism(self) -> None:
        if not hasattr(self.original, "_parallel_config"):
            raise BackendError(f"{type(self.original).__name__} does not support context parallelism")
        self.original._parallel_config = self._parallel_config

    def attend(self, q: Tensor, k: Tensor, v: Tensor, text: int = 0) -> Tensor:
        """Return the attention of q, k and v, [B, L, H, D], of which the last `text` tokens are text: [B, L, H D].

        Under context parallelism L counts this process' tokens.
        """
        # Under autocast a norm may have left queries and keys wider than the values.
        q, k = q.to(v.dtype), k.to(v.dtype)
        if self._parallel_config is None:
            return self._attend(q, k, v, self.mix, text).flatten(2)
        if text:
            raise BackendError(
                "sparse-linear attention does not support context parallelism where text and picture attend together, "
                "only in Wan: do not call enable_parallelism() on this model"
            )
        return over_processes(self._attend, q, k, v, self.mix, self._parallel_config).flatten(2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mix: Tensor | None, text: int = 0) -> Tensor:
        self.tokens = q.shape[1] - text
        if self.listener is not None:
            self.listener(q, k, text)
        return joint_attention(q, k, v, text, self.proj, mix, self.settings)


def no_mask(mask: Tensor | None) -> None:
    """Raise `ConfigError` where there is an attention mask."""
    if mask is not None:
        raise ConfigError(
            "sparse-linear attention does not support attention masks: leave the padding out of the sequence instead"
        )


def heads_of(attn: Any, x: Tensor) -> Tensor:
    """Split features into heads: [B, L, H D] to [B, L, H, D]."""
    return x.unflatten(2, (attn.heads, -1))


def projected(attn: Any, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return normalised queries and keys, and values, of a layer's own tokens, each [B, L, H, D]."""
    q, k, v = (heads_of(attn, layer(states)) for layer in (attn.to_q, attn.to_k, attn.to_v))
    return normalised(attn.norm_q, q), normalised(attn.norm_k, k), v


def projected_text(attn: Any, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same of the text in layers that have projections for it."""
    q, k, v = (heads_of(attn, layer(states)) for layer in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj))
    return normalised(attn.norm_added_q, q), normalised(attn.norm_added_k, k), v


def normalised(norm: nn.Module | None, x: Tensor) -> Tensor:
    """Apply a layer's norm of queries or keys over the features of each head, where it has one."""
    return x if norm is None else norm(x)
