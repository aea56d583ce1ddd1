"""A decoder layer that keeps the keys and values of the tokens it has read."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True)
class Step:
    """Where the tokens of one pass stand.

    Attributes:
        positions: (batch, seq), int64, of each token in its text.
        slots: (seq,), int64, columns of the cache that the tokens get.
        length: columns of the cache that are attended to.
        mask: (batch, 1, seq, length), True = attends; None: each token attends to all columns up to its own.
    """

    positions: torch.Tensor
    slots: torch.Tensor
    length: int
    mask: torch.Tensor | None


class CachedLayer(nn.Module):
    """Computes what a layer of torchtune's decoder does, with its parameters; the layer itself stays as it is."""

    keys: torch.Tensor
    values: torch.Tensor
    """(batch, key heads, max_tokens, head_dim), as the keys are."""

    def __init__(self, layer: Any, batch: int, max_tokens: int) -> None:
        """Allocates the cache.

        Args:
            layer: torchtune's `TransformerSelfAttentionLayer`, on its device.
            batch: most texts at once.
            max_tokens: most tokens of a text.
        """
        super().__init__()
        self.layer = layer
        attention, weight = layer.attn, layer.attn.k_proj.weight  # norms may be fp32 beside bf16 matrices
        shape = (batch, attention.num_kv_heads, max_tokens, attention.head_dim)
        for name in ("keys", "values"):
            self.register_buffer(name, torch.zeros(shape, dtype=weight.dtype, device=weight.device), persistent=False)

    def forward(self, x: torch.Tensor, step: Step) -> torch.Tensor:
        """Returns (batch, seq, embed_dim) for the next tokens, (batch, seq, embed_dim), and keeps their keys."""
        layer = self.layer
        x = x + layer.sa_scale(self._attend(layer.sa_norm(x), step))
        return x + layer.mlp_scale(layer.mlp(layer.mlp_norm(x)))

    def _attend(self, x: torch.Tensor, step: Step) -> torch.Tensor:
        attention, (rows, count, _) = self.layer.attn, x.shape
        heads = (rows, count, -1, attention.head_dim)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        q, k, v = (projection(x).view(heads) for projection in projections)
        q, k = (attention.pos_embeddings(one, input_pos=step.positions).transpose(1, 2) for one in (q, k))
        self.keys[:rows].index_copy_(2, step.slots, k)
        self.values[:rows].index_copy_(2, step.slots, v.transpose(1, 2))
        keys, values = self.keys[:rows, :, : step.length], self.values[:rows, :, : step.length]
        if count == 1:
            # the heads that share keys are taken as queries of one head, which needs no copy of the cache
            q = q.reshape(rows, keys.shape[1], -1, attention.head_dim)
            mixed = scaled_dot_product_attention(q, keys, values, attn_mask=step.mask)
            return attention.output_proj(mixed.reshape(rows, 1, -1))
        causal = step.mask is None
        mixed = scaled_dot_product_attention(
            q, keys, values, attn_mask=step.mask, is_causal=causal, enable_gqa=q.shape[1] != keys.shape[1]
        )
        return attention.output_proj(mixed.transpose(1, 2).reshape(rows, count, -1))
