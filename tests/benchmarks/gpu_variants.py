"""What gpu.py runs, in its order: shapes, micro-benchmarks and variants, each with its seconds at most."""

from typing import Any

from train_common import hf_shape

SHAPES = {
    "8b": hf_shape(
        vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=8192,
    ),
    # Llama-3.2-3B's layers, with an output layer of its own
    "3b": hf_shape(
        vocab_size=128_256, hidden_size=3072, intermediate_size=8192, num_hidden_layers=28, num_attention_heads=24,
        num_key_value_heads=8, max_position_embeddings=8192,
    ),
    "tiny": hf_shape(
        vocab_size=512, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    ),
}  # fmt: skip

LENGTH_QUANTILES = (
    103, 139, 148, 156, 165, 172, 181, 193, 204, 215, 225, 234, 243, 256, 269, 283, 294, 303, 316, 328, 341, 356, 371,
    388, 403, 419, 439, 457, 475, 499, 519, 537, 565, 596, 623, 653, 688, 722, 754, 780, 819, 852, 894, 947, 992, 1046,
    1094, 1192, 1252, 1331, 1446, 1577, 1717, 1824, 2007, 2200, 2510, 2803, 3127, 3751, 4488, 5330, 7434, 11261, 36658,
)  # fmt: skip
"""Lengths in tokens at each 64th of 2,403 articles of Korean Wikipedia, cleaned, with Llama-3's tokenizer."""

PARTS = {"gemm": 30.0, "attention": 45.0, "cross_entropy": 30.0, "optimizer": 30.0}

_KAHAN = [
    "precision=bf16", "optimizer._component_=recipes.training.optimization.adamw.KahanAdamW", "optimizer.lr=1e-5",
    "optimizer.betas=[0.9,0.95]", "optimizer.weight_decay=0.1",
]  # fmt: skip
_FAST = [*_KAHAN, "compile=true", "activation_checkpointing=0.7"]
VARIANTS: dict[str, dict[str, Any]] = {
    "ours, dense": {"method": "ours", "tokens": "dense", "overrides": _FAST, "limit": 120.0},
    "ours, documents": {"method": "ours", "tokens": "documents", "overrides": _FAST, "limit": 90.0},
    "torchtune as shipped, documents": {
        "method": "stock", "tokens": "documents", "settings": {"activation_checkpointing": True}, "limit": 80.0,
    },
    "torchtune compiled, documents": {
        "method": "stock", "tokens": "documents", "settings": {"compile": True}, "limit": 100.0,
    },
    "ours, dense, again": {"method": "ours", "tokens": "dense", "overrides": _FAST, "limit": 90.0},
    "Trainer and Liger, dense": {
        "method": "hugging_face", "tokens": "dense", "limit": 70.0,
        "settings": {"packed": False, "activation_checkpointing": True},
    },
    "ours, float8 tensorwise, dense": {
        "method": "ours", "tokens": "dense", "overrides": [*_FAST, "float8=tensorwise"], "limit": 110.0,
        "needs_gpu": True,
    },
    "ours, dense, varlen kernel": {
        "method": "ours", "tokens": "dense", "overrides": [*_FAST, "attention=varlen"], "limit": 90.0,
        "needs_gpu": True,
    },
    "ours, CUDA graphs, dense": {
        "method": "ours", "tokens": "dense", "overrides": [*_FAST, "cuda_graphs=true"], "limit": 110.0,
        "needs_gpu": True,
    },
    "ours, 2 sequences, dense": {
        "method": "ours", "tokens": "dense", "overrides": _FAST, "settings": {"micro_batch": 2}, "limit": 90.0,
    },
    "ours, float8 rowwise, dense": {
        "method": "ours", "tokens": "dense", "overrides": [*_FAST, "float8=rowwise"], "limit": 110.0,
        "needs_gpu": True,
    },
}  # fmt: skip
"""`tokens`: which shards; `settings`: of the process; `overrides`: of recipes/cpt.py."""

WHEELS = (
    "absl-py", "accelerate", "datasets", "dill", "liger-kernel", "multiprocess", "omegaconf>=2.4", "protobuf", "psutil",
    "sentencepiece", "tensorboard", "tiktoken", "torchao>=0.14,<0.16", "torchdata", "torchtune==0.6.1", "xxhash",
    "zstandard",
)  # fmt: skip
"""What ours, torchtune and Trainer import beside torch, transformers, numpy, pandas and pyarrow."""
