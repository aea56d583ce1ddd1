"""Compiled layers, and CUDA graphs of them; the graphs are not yet tried on a GPU."""

from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn


def cuda_graph_problems(cfg: DictConfig, device: str, stored: torch.dtype) -> list[str]:
    """Returns why a run cannot replay its layers as CUDA graphs, as far as one process can see.

    Args:
        cfg: `TrainSettings`.
        device: `cpu` or `cuda`.
        stored: dtype in which what learns is stored.
    """
    if not cfg.cuda_graphs:
        return []
    problems = []
    if device != "cuda":
        problems.append(f"cuda_graphs: true on device={device}; they are recorded from a GPU; set cuda_graphs=false")
    if not cfg.compile:
        problems.append("cuda_graphs: true without compile=true; compiled layers are recorded; set compile=true")
    batch = cfg.seq_len * cfg.micro_batch
    if cfg.global_batch_tokens > batch and (stored == torch.float32 or cfg.adapter):
        # torch takes a graph's memory as the gradient, and the next replay overwrites it (pytorch issue 169545)
        problems.append(
            f"cuda_graphs: true with {cfg.global_batch_tokens / batch:g} micro-batches a step and gradients kept in "
            f"{str(stored).removeprefix('torch.')}; such gradients are overwritten before they are added up; set "
            f"global_batch_tokens={batch}, use KahanAdamW without adapter, or set cuda_graphs=false"
        )
    return problems


def compile_layers(model: Any, cuda_graphs: bool) -> None:
    """Has each layer compiled when it is first called, in place.

    Args:
        model: with `layers`.
        cuda_graphs: whether a GPU replays a layer's kernels as one, without the CPU starting each.
    """
    layers: nn.ModuleList = model.layers
    for layer in layers:
        layer.compile(fullgraph=True, mode="reduce-overhead" if cuda_graphs else None)
    if cuda_graphs:
        # or else torch takes each layer's call for a new step, and what the one before returned for done with
        model.register_forward_pre_hook(lambda *_: torch.compiler.cudagraph_mark_step_begin())
