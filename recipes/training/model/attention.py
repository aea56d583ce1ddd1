"""Causal attention that never crosses a document: the backends, and the layer that calls one of them."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, cast

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

BACKENDS = ("auto", "varlen", "per_document", "mask")
"""`varlen`: one kernel over all documents (CUDA). `per_document`: one call a document. `mask`: a dense mask a row."""
WHOLE_ROW_KERNELS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""For rows that are one document each, the first that runs; the order of their speed on an H100."""
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, "Documents"], torch.Tensor]


@dataclass(frozen=True)
class Documents:
    """Where the documents of a micro-batch lie, its rows laid end to end.

    `ends` holds the position behind each document; a row's end always ends one. `offsets` is (n,), int32, on the
    device: 0 and the ends, filled up with the last one to a power of two, so that compiled code sees few shapes.
    `are_rows` says that every row is one document.
    """

    ends: tuple[int, ...]
    offsets: torch.Tensor
    seq_len: int
    are_rows: bool

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
        are_rows = len(ends) == len(documents)
        return cls(tuple(ends.tolist()), filled.to(device, non_blocking=True), seq_len, are_rows)


class SelfAttention(nn.Module):
    """Takes the place of torchtune's attention in training: same parameters, no expanded keys and values, no mask."""

    cache_enabled = False
    """torchtune's decoder asks for a key-value cache; training has none."""

    def __init__(self, stock: Any, backend: str, takes_rows: bool = False) -> None:
        """Takes over the parameters of torchtune's `MultiHeadAttention`.

        Args:
            stock: that module.
            backend: as `choose_backend` returns it.
            takes_rows: whether rows of one document each go another, faster way: causal attention without documents.
        """
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = stock.q_proj, stock.k_proj, stock.v_proj
        self.output_proj, self.pos_embeddings = stock.output_proj, stock.pos_embeddings
        self.head_dim, self._attend, self._takes_rows = stock.head_dim, _attention(backend), takes_rows

    def forward(self, x: torch.Tensor, _: Any, *, mask: Documents, input_pos: torch.Tensor) -> torch.Tensor:
        """Returns (batch, seq, embed_dim).

        Args:
            x: (batch, seq, embed_dim).
            mask: the documents; the name is torchtune's.
            input_pos: (batch, seq), int64, position of each token in its document.
        """
        shape = (*x.shape[:2], -1, self.head_dim)
        q, k, v = (projection(x).view(shape) for projection in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(self.pos_embeddings, input_pos, q, k)
        attend_to = _whole_rows if self._takes_rows and mask.are_rows else self._attend
        return self.output_proj(attend_to(q, k, v, mask).flatten(2))


def rotate(embedding: Any, positions: torch.Tensor, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """Returns the tensors, each (batch, seq, heads, head_dim), rotated by their positions, computed in fp32.

    Args:
        embedding: torchtune's rotary embedding; neighbouring columns are a pair.
        positions: (batch, seq), int64.
        tensors: any float dtype, which the result has too.

    Source: Su et al. 2021 (RoFormer), section 3.2.2, as a product of complex numbers.
    """
    if torch.compiler.is_compiling():  # the compiler has no complex numbers; it fuses the long form
        return [embedding(tensor, input_pos=positions) for tensor in tensors]
    turns = torch.view_as_complex(embedding.cache)[positions].unsqueeze(2)  # (batch, seq, 1, head_dim / 2)
    pairs = (torch.view_as_complex(tensor.float().unflatten(-1, (-1, 2))) for tensor in tensors)
    turned = (torch.view_as_real(pair * turns).flatten(-2) for pair in pairs)
    return [new.type_as(old) for new, old in zip(turned, tensors, strict=True)]


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents, backend: str) -> torch.Tensor:
    """Returns causal attention within each document, (batch, seq, heads, head_dim).

    Args:
        q: (batch, seq, heads, head_dim).
        k: (batch, seq, kv_heads, head_dim); `heads` is a multiple of `kv_heads`.
        v: like `k`.
        documents: of the batch.
        backend: one of `BACKENDS` but `auto`.
    """
    return _attention(backend)(q, k, v, documents)


def choose_backend(backend: str, device: str, precision: str, compiled: bool) -> str:
    """Returns the backend itself, which for `auto` is the fastest that runs.

    Args:
        backend: one of `BACKENDS`.
        device: `cpu` or `cuda`.
        precision: of the computation, `fp32` or `bf16`.
        compiled: whether the layers are; the lengths of the documents would be compiled into `per_document`.

    Raises:
        ValueError: that backend does not run there.
    """
    obstacle = _varlen_obstacle(device, precision)
    if backend == "auto":
        return "varlen" if obstacle is None else "mask" if compiled else "per_document"
    if backend == "varlen" and obstacle:
        raise ValueError(obstacle)
    if backend == "per_document" and compiled:
        raise ValueError(
            "per_document with compile=true would compile every batch anew, as the lengths of its documents differ; "
            "set attention=auto, or compile=false"
        )
    return backend


def use_own_attention(layers: nn.ModuleList, backend: str, takes_rows: bool = False) -> None:
    """Replaces torchtune's attention in each layer, in place; the parameters keep their names.

    Args:
        layers: of torchtune's decoder; their `mask` is to be `Documents` from now on.
        backend: as `choose_backend` returns it.
        takes_rows: whether rows of one document each are attended to without regard to documents.
    """
    for layer in layers:
        layer.attn = SelfAttention(layer.attn, backend, takes_rows)


def _varlen_obstacle(device: str, precision: str) -> str | None:
    if device != "cuda":
        return f"varlen on device={device}; its kernel needs cuda; set attention=auto"
    if precision != "bf16":
        return f"varlen with precision={precision}; its kernel computes in bf16; set precision=bf16, or attention=auto"
    if not _varlen_window():
        return f"varlen with torch {torch.__version__}, which has no varlen_attn; 2.11 has; set attention=auto"
    return None


def _attention(backend: str) -> Attend:
    if backend == "varlen":
        # looked up here, once: code that is compiled cannot inspect a signature
        from torch.nn.attention.varlen import varlen_attn

        return partial(_varlen, varlen_attn, _varlen_window() or {})
    return _per_document if backend == "per_document" else _masked


def _varlen(
    kernel: Callable[..., Any],
    options: dict[str, Any],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    documents: Documents,
) -> torch.Tensor:
    shape = q.shape
    q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    if "enable_gqa" not in options:
        k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for t in (k, v))
    bounds, longest = documents.offsets, documents.seq_len
    return cast(torch.Tensor, kernel(q, k, v, bounds, bounds, longest, longest, **options)).view(shape)


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
    return causal | ({"enable_gqa": True} if "enable_gqa" in parameters else {})


def _per_document(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents) -> torch.Tensor:
    shape = q.shape
    lengths = [end - start for start, end in zip((0, *documents.ends), documents.ends, strict=False)]
    parts = zip(*(t.flatten(0, 1).split(lengths) for t in (q, k, v)), strict=True)
    return torch.cat([_sdpa(*(t[None] for t in part), is_causal=True)[0] for part in parts]).view(shape)


def _whole_rows(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, _: Documents) -> torch.Tensor:
    with sdpa_kernel(WHOLE_ROW_KERNELS, set_priority=True):
        return _sdpa(q, k, v, is_causal=True)


def _masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents) -> torch.Tensor:
    batch, seq_len = q.shape[:2]
    positions = torch.arange(batch * seq_len, device=q.device, dtype=torch.int32)
    number = torch.searchsorted(documents.offsets[1:], positions, right=True).view(batch, 1, seq_len)
    mask = (number.transpose(1, 2) == number).tril()
    return _sdpa(q, k, v, attn_mask=mask[:, None])


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    out = scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1], **options)
    return out.transpose(1, 2)
