"""The parts of a training step alone: `python gpu_micro.py PART SETTINGS.json`, started by gpu.py.

SETTINGS has device, out, rows (tokens of a micro-batch) and the model's shape; figures are milliseconds, medians.
"""

import importlib.util
import inspect
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
Settings = dict[str, Any]


def probe(settings: Settings) -> Settings:
    """Returns what this machine's software has."""
    facts: Settings = {"python": sys.version.split()[0], "torch": torch.__version__, "cuda": torch.version.cuda}
    if settings["device"] == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts |= {"gpu": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)}
    for name in ("transformers", "torchtune", "torchao", "liger_kernel", "accelerate", "flash_attn", "omegaconf"):
        facts[name] = importlib.util.find_spec(name) is not None
    try:
        from torch.nn.attention.varlen import varlen_attn

        facts["varlen_attn"] = str(inspect.signature(varlen_attn))
    except ImportError:
        facts["varlen_attn"] = None
    facts["linear_cross_entropy"] = hasattr(F, "linear_cross_entropy")
    return facts


def gemm(settings: Settings) -> Settings:
    """Times each matrix product of a layer and of the output layer, forward and both gradients."""
    shape, rows = settings["shape"], settings["rows"]
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    kv = width // shape["num_attention_heads"] * shape["num_key_value_heads"]
    products = {
        "q, o": (width, width), "k, v": (width, kv), "gate, up": (width, inner), "down": (inner, width),
        "output": (width, shape["vocab_size"]),
    }  # fmt: skip
    found = {}
    for name, (wide, high) in products.items():
        x, w, g = (_random(settings, *size) for size in ((rows, wide), (high, wide), (rows, high)))
        times = {
            "forward": _milliseconds(settings, lambda x=x, w=w: x @ w.t()),
            "input": _milliseconds(settings, lambda g=g, w=w: g @ w),
            "weight": _milliseconds(settings, lambda g=g, x=x: g.t() @ x),
        }
        rates = {key: round(2e-9 * rows * wide * high / value, 1) for key, value in times.items()}
        found[name] = {"ms": times, "TFLOP/s": rates}
    return found


def attention(settings: Settings) -> Settings:
    """Times forward and backward of causal attention: whole sequences, and documents, with each backend there is."""
    from recipes.training.model.attention import Documents, attend

    shape, rows, device = settings["shape"], settings["rows"], settings["device"]
    heads, kv_heads = shape["num_attention_heads"], shape["num_key_value_heads"]
    dim = shape["hidden_size"] // heads
    q, k, v = (_random(settings, 1, rows, n, dim).requires_grad_() for n in (heads, kv_heads, kv_heads))
    numbers = torch.repeat_interleave(torch.arange(17), -(-rows // 17))[None, :rows]
    found: Settings = {}

    def both(forward: Callable[[], torch.Tensor]) -> None:
        out = forward()
        out.backward(torch.ones_like(out))

    for kernel, backend in _dense_kernels(device):
        found[f"dense, {kernel}"] = _attempt(settings, lambda b=backend: both(lambda: _dense(q, k, v, b)))
    for kind, documents in (("one document", torch.zeros(1, rows, dtype=torch.int64)), ("17 documents", numbers)):
        where = Documents.of(documents, torch.device(device))
        for backend in ("varlen", "per_document", "mask"):
            found[f"{kind}, {backend}"] = _attempt(
                settings, lambda w=where, b=backend: both(lambda: attend(q, k, v, w, b))
            )
    return found


def cross_entropy(settings: Settings) -> Settings:
    """Times output layer and loss, forward and backward, and what they need at the peak."""
    from recipes.training.model.cross_entropy import linear_cross_entropy

    shape, rows, device = settings["shape"], settings["rows"], settings["device"]
    hidden = _random(settings, 1, rows, shape["hidden_size"]).requires_grad_()
    weight = _random(settings, shape["vocab_size"], shape["hidden_size"]).requires_grad_()
    targets = torch.randint(0, shape["vocab_size"], (1, rows), device=device)
    found: Settings = {}
    for chunk in (0, *(c for c in (1024, 2048, 4096) if c < rows)):
        found[f"ours, {chunk or 'all'} rows"] = _attempt(
            settings, lambda c=chunk: linear_cross_entropy(hidden, weight, targets, c)[0].backward()
        )
    if importlib.util.find_spec("liger_kernel") and device == "cuda":
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        loss = LigerFusedLinearCrossEntropyLoss()
        found["Liger"] = _attempt(settings, lambda: loss(weight, hidden[0], targets[0]).backward())
    return found


def optimizer(settings: Settings) -> Settings:
    """Times the update of one layer's parameters, and extrapolates it to `num_parameters`."""
    from recipes.training.optimization.adamw import KahanAdamW

    shape = settings["shape"]
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    found: Settings = {}
    kinds: dict[str, tuple[Callable[..., torch.optim.Optimizer], torch.dtype]] = {
        "torch.optim.AdamW, fused, bf16": (lambda p: torch.optim.AdamW(p, fused=True), torch.bfloat16),
        "torch.optim.AdamW, fused, fp32": (lambda p: torch.optim.AdamW(p, fused=True), torch.float32),
        "ours, Kahan, bf16": (lambda p: KahanAdamW(p, lr=1e-5), torch.bfloat16),
    }
    for name, (build, dtype) in kinds.items():
        parameters = [torch.nn.Parameter(_random(settings, inner, width).to(dtype)) for _ in range(3)]
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        one = _attempt(settings, build(parameters).step)
        if "ms" in one:
            share = sum(p.numel() for p in parameters) / settings["num_parameters"]
            one["ms of all parameters"] = round(one["ms"] / share, 2)
        found[name] = one
    return found


def _dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, backend: Any) -> torch.Tensor:
    from torch.nn.attention import sdpa_kernel

    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    if backend is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def _dense_kernels(device: str) -> Iterator[tuple[str, Any]]:
    from torch.nn.attention import SDPBackend

    yield "as torch chooses", None
    if device == "cuda":
        yield "cuDNN", SDPBackend.CUDNN_ATTENTION
        yield "flash", SDPBackend.FLASH_ATTENTION


def _random(settings: Settings, *size: int) -> torch.Tensor:
    return torch.randn(*size, device=settings["device"], dtype=torch.bfloat16)


def _attempt(settings: Settings, action: Callable[[], object]) -> Settings:
    """Returns milliseconds and peak memory of an action, or why it does not run here."""
    try:
        if settings["device"] == "cuda":
            torch.cuda.reset_peak_memory_stats()
        facts: Settings = {"ms": _milliseconds(settings, action)}
        if settings["device"] == "cuda":
            facts["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    except Exception as error:  # a kernel may be missing in any way; the others are measured all the same
        return {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"}
    return facts


def _milliseconds(settings: Settings, action: Callable[[], object], repeats: int = 10) -> float:
    def wait() -> None:
        if settings["device"] == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):
        action()
    times = []
    for _ in range(repeats):
        wait()
        began = time.perf_counter()
        action()
        wait()
        times.append(time.perf_counter() - began)
    return round(1000 * statistics.median(times), 4)


PARTS: dict[str, Callable[[Settings], Settings]] = {
    function.__name__: function for function in (probe, gemm, attention, cross_entropy, optimizer)
}

if __name__ == "__main__":
    chosen = json.loads(Path(sys.argv[2]).read_text())
    figures = PARTS[sys.argv[1]](chosen)
    target = Path(chosen["out"])
    target.with_suffix(".tmp").write_text(json.dumps(figures))
    target.with_suffix(".tmp").replace(target)
