"""The table of gpu.py: tokens a second, share of the GPU's peak in both conventions, memory and loss."""

import statistics
from collections.abc import Sequence
from typing import Any

from train_common import our_shape

PEAK_FLOPS = 989e12
"""Dense bf16 of an H100 or H200 SXM, from NVIDIA's data sheets; float8 rows are set against it too."""


def median(values: Sequence[float]) -> float:
    """Returns the median."""
    return statistics.median(values)


def table(results: dict[str, Any]) -> list[str]:
    """Returns the lines of the result: the variants, then the parts.

    MFU counts no operation twice and attention as if a sequence were one document: `full` over the square of
    positions, `causal` over half of it. For tokens in documents it can thus pass what the GPU really computes.
    """
    from gpu_variants import SHAPES

    from recipes.training.model.decoder import Architecture
    from recipes.training.planning.footprint import flops_per_token

    architecture = Architecture(**our_shape(SHAPES[results["model"]]))
    flops = flops_per_token(architecture, results["sizes"]["seq_len"])
    gpu = results["probe"].get("gpu", "no GPU")
    lines = [f"Llama {results['model']}, {results['sizes']['seq_len']} tokens a sequence, on {gpu}; MFU of 989 TFLOP/s"]
    heads = ("tokens/s", "MFU full", "causal", "peak GiB", "first loss", "last loss")
    lines.append(f"{'':<34}" + "".join(f"{head:>11}" for head in heads))
    for name, facts in results["variants"].items():
        if "error" in facts:
            lines.append(f"{name:<34}  {facts['error']}")
            continue
        rate = facts["tokens_per_step"] / median(facts["seconds"])
        shares = [100 * rate * flops[kind] / PEAK_FLOPS for kind in ("full", "causal")]
        peak = facts.get("peak_cuda", facts["peak_rss"]) / 2**30
        values = [f"{rate:,.0f}", *(f"{share:.1f} %" for share in shares), f"{peak:.1f}"]
        values += [f"{facts['losses'][0]:.4f}", f"{facts['losses'][-1]:.4f}"]
        lines.append(f"{name:<34}" + "".join(f"{value:>11}" for value in values))
    for part, facts in results["parts"].items():
        lines += ["", part, *_flat(facts)]
    return lines


def _flat(facts: dict[str, Any], before: str = "  ") -> list[str]:
    lines = []
    for key, value in facts.items():
        inner = value.items() if isinstance(value, dict) else ()
        told = "  ".join(f"{k}: {v}" for k, v in inner) if inner else str(value)
        lines.append(f"{before}{key:<32}{told}")
    return lines
