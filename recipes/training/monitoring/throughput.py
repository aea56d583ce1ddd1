"""How fast a step was, which share of the GPU's peak that is, and how much memory it took."""

import re
import resource
import sys
from dataclasses import dataclass

import torch
from omegaconf import DictConfig

from recipes.training.distributed import World
from recipes.training.model.decoder import Architecture
from recipes.training.planning.footprint import GIB, flops_per_token, frozen_parts

PEAK_TFLOPS = (
    (r"\bB200\b", 2250.0),
    (r"\b(H100|H200)\b.*\bNVL\b", 835.0),
    (r"\bH100\b.*\bPCIe\b", 756.0),
    (r"\b(H100|H200|H800|GH200)\b", 989.0),
    (r"\b(A100|A800)\b", 312.0),
)
"""Name of a GPU -> dense bf16 rate of its tensor cores in TFLOP/s, the first that matches.

NVIDIA's figures without sparsity, which are half of those its data sheets print first. Others: set `peak_tflops`.
"""


@dataclass(frozen=True)
class Throughput:
    """Turns a step's seconds into rates.

    Attributes:
        tokens: of a step, over all ranks.
        ranks: number of processes, each with a GPU of its own.
        flops: floating-point operations of a token by convention, see `flops_per_token`.
        peak_tflops: of a rank's device; None leaves the MFU out.
    """

    tokens: int
    ranks: int
    flops: dict[str, float]
    peak_tflops: float | None

    @classmethod
    def of(cls, cfg: DictConfig, architecture: Architecture, world: World) -> "Throughput":
        """Reads it from `TrainSettings`."""
        flops = flops_per_token(architecture, cfg.seq_len, *frozen_parts(cfg))
        return cls(cfg.global_batch_tokens, world.size, flops, cfg.peak_tflops or known_peak(world.device))

    def of_step(self, seconds: float) -> dict[str, float]:
        """Returns tokens a second, of all ranks and of one, and with a known peak the MFU in both conventions.

        The MFU is the share of the peak that the model's operations take. It counts attention as if each sequence
        were one document (`full`: over the whole square, `causal`: over its half), and nothing computed twice.

        Source: MFU: Chowdhery et al. 2022 (PaLM), section 4.1.
        """
        rate = self.tokens / seconds / self.ranks
        figures = {
            "time/step": seconds,
            "speed/tokens_per_second": self.tokens / seconds,
            "speed/tokens_per_second_per_rank": rate,
        }
        if self.peak_tflops:
            peak = self.peak_tflops * 1e12
            figures |= {f"speed/mfu_{convention}": rate * flops / peak for convention, flops in self.flops.items()}
        return figures


def known_peak(device: torch.device) -> float | None:
    """Returns the dense bf16 rate of a GPU in TFLOP/s if its name is known."""
    return peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def peak_of(name: str) -> float | None:
    """Returns the dense bf16 rate in TFLOP/s of the GPU that CUDA calls `name`, None if it is not known."""
    return next((peak for pattern, peak in PEAK_TFLOPS if re.search(pattern, name, re.IGNORECASE)), None)


def peak_memory(device: torch.device) -> dict[str, float]:
    """Returns in GiB what a GPU needed and its allocator held since the last call, or the most the process ever had.

    The update of the weights counts towards the step after, as the figures are taken before it.
    """
    if device.type == "cuda":
        allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        torch.cuda.reset_peak_memory_stats(device)
        return {"memory/peak_allocated_gib": allocated / GIB, "memory/peak_reserved_gib": reserved / GIB}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"memory/peak_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB}
