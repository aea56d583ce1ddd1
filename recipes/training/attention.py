"""Causal attention that never crosses a document: the backends, and the layer that calls one of them."""

import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

BACKENDS = ("auto", "varlen", "per_document", "mask")
"""`varlen`: one kernel over all documents (CUDA). `per_document`: one call a document. `mask`: a dense mask."""


@dataclass(frozen=True)
class Documents:
    """Where the documents of a micro-batch lie, its rows laid end to end.

    `ends` holds the position behind each document; a row's end always ends one. `offsets` is (n,), int32, on the
    device: 0 and the ends, filled up with the last one to a power of two, so that compiled code sees few shapes.
    """

    ends: tuple[int, ...]
    offsets: torch.Tensor
    seq_len: int

    @classmethod
    def of(cls, documents: torch.Tensor, device: torch.device) -> "Documents":
        """Finds the documents.

        Args:
            documents: (batch, seq), int64, on the CPU; neighbours of one row with the same number belong together.
            device: of the attention.
        """
        seq_len = documents.shape[1]
        is_end = torch.ones_like(documents, dtype=torch.bool)
        is_end[:, :-1] = documents[:, 1:] != documents[:, :-1]
        ends = (is_end.flatten().nonzero().flatten() + 1).to(torch.int32)
        size = 1 << len(ends).bit_length()
        filled = torch.cat([ends.new_zeros(1), ends, ends[-1:].expand(size - len(ends) - 1)])
        return cls(tuple(ends.tolist()), filled.to(device, non_blocking=True), seq_len)


class SelfAttention(nn.Module):
    """Takes the place of torchtune's attention in training: same parameters, no expanded keys and values, no mask."""

    def __init__(self, stock: Any, backend: str) -> None:
        """Takes over the parameters of torchtune's `MultiHeadAttention`."""
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = stock.q_proj, stock.k_proj, stock.v_proj
        self.output_proj, self.pos_embeddings = stock.output_proj, stock.pos_embeddings
        self.head_dim, self.backend = stock.head_dim, backend

    def forward(self, x: torch.Tensor, _: Any, *, mask: Documents, input_pos: torch.Tensor) -> torch.Tensor:
        """Returns (batch, seq, embed_dim).

        Args:
            x: (batch, seq, embed_dim).
            mask: the documents; the name is torchtune's.
            input_pos: (batch, seq), int64, position of each token in its document.
        """
        shape = (*x.shape[:2], -1, self.head_dim)
        q = self.pos_embeddings(self.q_proj(x).view(shape), input_pos=input_pos)
        k = self.pos_embeddings(self.k_proj(x).view(shape), input_pos=input_pos)
        v = self.v_proj(x).view(shape)
        return self.output_proj(attend(q, k, v, mask, self.backend).flatten(2))


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents, backend: str) -> torch.Tensor:
    """Returns causal attention within each document, (batch, seq, heads, head_dim).

    Args:
        q: (batch, seq, heads, head_dim).
        k: (batch, seq, kv_heads, head_dim); `heads` is a multiple of `kv_heads`.
        v: like `k`.
        documents: of the batch.
        backend: one of `BACKENDS`.
    """
    if backend == "auto":
        backend = "varlen" if q.is_cuda and q.dtype != torch.float32 and _varlen_window() else "per_document"
    shape = q.shape
    q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    return {"varlen": _varlen, "per_document": _per_document, "mask": _masked}[backend](q, k, v, documents).view(shape)


def available(backend: str, device: str, precision: str) -> str | None:
    """Returns why a backend cannot be used on `device` (cpu or cuda), or None."""
    if backend != "varlen":
        return None
    if device != "cuda":
        return "varlen needs device=cuda"
    if precision != "bf16":
        return "varlen needs precision=bf16"
    return None if _varlen_window() else f"torch {torch.__version__} has no varlen_attn; use per_document"


def _varlen(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    options = dict(_varlen_window() or {})
    if options.pop("expand_kv", False):
        k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for t in (k, v))
    bounds, longest = documents.offsets, documents.seq_len
    return cast(torch.Tensor, varlen_attn(q, k, v, bounds, bounds, longest, longest, **options))


@cache
def _varlen_window() -> dict[str, Any] | None:
    """Returns what makes this torch's `varlen_attn` causal and grouped; None if it has none.

    2.10 and 2.11 say `is_causal` and know no groups, 2.12 replaced it by `window_size` and added `enable_gqa`.
    """
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    parameters = inspect.signature(varlen_attn).parameters
    causal: dict[str, Any] = {"is_causal": True} if "is_causal" in parameters else {"window_size": (-1, 0)}
    return causal | ({"enable_gqa": True} if "enable_gqa" in parameters else {"expand_kv": True})


def _per_document(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents) -> torch.Tensor:
    lengths = [end - start for start, end in zip((0, *documents.ends), documents.ends, strict=False)]
    parts = zip(*(t.split(lengths) for t in (q, k, v)), strict=True)
    return torch.cat([_sdpa(*part, is_causal=True) for part in parts])


def _masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents) -> torch.Tensor:
    ends = torch.tensor(documents.ends, device=q.device)
    number = torch.searchsorted(ends, torch.arange(len(q), device=q.device), right=True)
    mask = (number[:, None] == number[None]).tril()
    return _sdpa(q, k, v, attn_mask=mask)


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
    q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))
    out = scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1], **options)
    return out[0].transpose(0, 1)
