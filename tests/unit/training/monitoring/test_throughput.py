"""Rates of a step against published ones, and the peaks of GPUs by name."""

import pytest
import torch

from recipes.training.model.decoder import Architecture
from recipes.training.monitoring.throughput import Throughput, peak_memory, peak_of
from recipes.training.planning.footprint import flops_per_token


def test_mfu_of_a_published_llama3_8b_run_in_both_conventions():
    # NVIDIA NeMo on 8 H100: 10,682 tokens/s a GPU at 8192 tokens, 62.6 % full and 55.6 % causal of 989 TFLOP/s
    tokens, seconds = 2**20, 2**20 / (8 * 10_682)
    figures = Throughput(tokens, 8, flops_per_token(Architecture(), 8192), 989.0).of_step(seconds)
    assert figures["speed/tokens_per_second_per_rank"] == pytest.approx(10_682)
    assert figures["speed/tokens_per_second"] == pytest.approx(85_456)
    assert figures["speed/mfu_full"] == pytest.approx(0.626, abs=5e-4)
    assert figures["speed/mfu_causal"] == pytest.approx(0.556, abs=5e-4)
    assert figures["time/step"] == seconds


def test_without_a_peak_there_is_no_mfu():
    figures = Throughput(100, 1, {"full": 1.0, "causal": 0.5}, None).of_step(2.0)
    assert figures == {"time/step": 2, "speed/tokens_per_second": 50, "speed/tokens_per_second_per_rank": 50}


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA B200", 2250),
        ("NVIDIA L40S", None),
        ("NVIDIA L40", None),
        ("NVIDIA A10", None),
        ("NVIDIA GB200", None),
        ("Tesla T4", None),
    ],
)
def test_peaks_by_the_names_that_cuda_gives(name, peak):
    assert peak_of(name) == peak


def test_the_peak_memory_of_a_process_grows_with_what_it_held():
    before = peak_memory(torch.device("cpu"))["memory/peak_rss_gib"]
    held = torch.ones(2**26)  # 256 MiB
    del held
    after = peak_memory(torch.device("cpu"))["memory/peak_rss_gib"]
    assert 0.01 < before <= after < 1024
