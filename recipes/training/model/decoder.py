"""The decoder of a Llama: its shape, its builder, and how it is spread over ranks."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torchtune.models.llama3._component_builders import llama3
from torchtune.models.llama3_1._component_builders import llama3_1
from torchtune.models.llama3_2._component_builders import llama3_2
from torchtune.modules import TransformerDecoder

from configs.loader import ConfigError
from data_prep.hf_directory import ModelDirectory
from recipes.training.distributed import World
from recipes.training.model.activations import spare_activations
from recipes.training.model.attention import choose_backend, use_own_attention
from recipes.training.model.casting import GradientSums
from recipes.training.model.compiling import compile_layers
from recipes.training.model.cross_entropy import Scratch, linear_cross_entropy
from recipes.training.model.float8 import use_float8
from recipes.training.model.freezing import freeze
from recipes.training.model.layout import LayoutSettings, spread
from recipes.training.model.tensor_parallel import vocabulary_cross_entropy


@dataclass
class Architecture:
    """Shape of a Llama-3 family decoder; the names are torchtune's, sizes in elements."""

    vocab_size: int = 128_256
    num_layers: int = 32
    num_heads: int = 32
    num_kv_heads: int = 8
    embed_dim: int = 4096
    intermediate_dim: int = 14_336
    max_seq_len: int = 8192
    rope_base: int = 500_000
    rope_scale_factor: int = 1
    """Llama-3.1's frequency scaling (low 1, high 4, original context 8192); 1 is none."""
    norm_eps: float = 1e-5
    tied_embeddings: bool = False

    @classmethod
    def from_hf(cls, config: dict[str, Any], origin: object) -> "Architecture":
        """Reads a Hugging Face `config.json`.

        Args:
            config: the parsed file, of transformers 4 or 5.
            origin: named in the error.

        Raises:
            ConfigError: another model type, or a feature that torchtune's builders do not have.
        """
        scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        heads, width = config.get("num_attention_heads", 0), config.get("hidden_size", 0)
        llama3_scaling = {"low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8192}
        found = {
            "model_type": (config.get("model_type"), "llama"),
            "hidden_act": (config.get("hidden_act", "silu"), "silu"),
            "attention_bias": (config.get("attention_bias", False), False),
            "mlp_bias": (config.get("mlp_bias", False), False),
            "head_dim": (config.get("head_dim") or (width // heads if heads else 0), width // heads if heads else 1),
        }
        if kind == "llama3":
            found |= {key: (scaling.get(key), value) for key, value in llama3_scaling.items()}
        elif kind != "default":
            found["rope_type"] = (kind, "llama3")
        problems = [
            f"{key} is {value!r}, {wanted!r} is supported; use a Llama-3 model"
            for key, (value, wanted) in found.items()
            if value != wanted
        ]
        if problems:
            raise ConfigError(origin, problems)
        return cls(
            vocab_size=config["vocab_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=config.get("num_key_value_heads") or heads,
            embed_dim=width,
            intermediate_dim=config["intermediate_size"],
            max_seq_len=config["max_position_embeddings"],
            rope_base=int(scaling.get("rope_theta") or config.get("rope_theta", 10_000)),
            rope_scale_factor=int(scaling["factor"]) if kind == "llama3" else 1,
            norm_eps=config.get("rms_norm_eps", 1e-6),
            tied_embeddings=config.get("tie_word_embeddings", False),
        )

    def to_hf(self, bos_id: int, eos_ids: list[int], dtype: str) -> dict[str, Any]:
        """Returns the Hugging Face `config.json`, in the form that transformers 4 and 5 both read."""
        scaling = {
            "rope_type": "llama3",
            "factor": float(self.rope_scale_factor),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.embed_dim,
            "intermediate_size": self.intermediate_dim,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.embed_dim // self.num_heads,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_seq_len,
            "rms_norm_eps": self.norm_eps,
            "rope_theta": float(self.rope_base),
            "rope_scaling": scaling if self.rope_scale_factor != 1 else None,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": self.tied_embeddings,
            "bos_token_id": bos_id,
            "eos_token_id": eos_ids if len(eos_ids) > 1 else eos_ids[0],
            "torch_dtype": dtype,
        }


def stated_architecture(weights: str | None, model: Mapping[str, Any] | None) -> Architecture:
    """Returns the shape that a run's `weights` and `model` state; weights that do not exist state none.

    Raises:
        ConfigError: neither states one, or each another.
    """
    stated = None if model is None else Architecture(**model)
    if weights is None or not Path(weights).exists():
        if stated is None:
            problem = f"{weights} does not exist, nor does `model` state a shape; give one of them"
            raise ConfigError("weights", [problem])
        return stated
    directory = ModelDirectory.open(weights)
    found = Architecture.from_hf(directory.config, directory.path / "config.json")
    wanted = asdict(found)
    problems = [
        f"model.{key}: {value}; the weights' config.json says {wanted[key]}; set it so, or name other weights"
        for key, value in (asdict(stated) if stated else {}).items()
        if value != wanted[key]
    ]
    if problems:
        raise ConfigError(directory.path, problems)
    return found


class Decoder(TransformerDecoder):
    """torchtune's decoder, which given targets returns their loss in place of the logits."""

    gradient_sums: GradientSums
    """Of a model that is not sharded."""
    scratch: Scratch
    """Of the loss."""

    def set_requires_gradient_sync(self, is_last: bool) -> None:
        """Says whether the next micro-batch is the step's last; FSDP2's own takes its place when sharded."""
        self.gradient_sums.is_last = is_last

    def forward(
        self,
        tokens: torch.Tensor,
        *,
        targets: torch.Tensor | None = None,
        loss_chunk: int = 0,
        z_loss: float = 0.0,
        **inputs: Any,
    ) -> Any:
        """Returns fp32 logits, (batch, seq, vocab), or with targets the two sums of `linear_cross_entropy`.

        Args:
            tokens: (batch, seq), int64.
            targets: (batch, seq), int64; `IGNORE` is not counted.
            loss_chunk: positions whose logits exist at once, 0 for all.
            z_loss: weight of the z-loss.
            inputs: `mask`, which is `Documents` with our attention, and `input_pos` of torchtune's decoder.
        """
        if targets is None:
            return super().forward(tokens, **inputs)
        hidden = self.tok_embeddings(tokens)
        for layer in self.layers:
            hidden = layer(hidden, **inputs)
        owner = self.output if isinstance(self.output, nn.Linear) else self.tok_embeddings
        hidden = self.norm(hidden)
        # FSDP gathers the weight with the root module, until the backward pass is through
        weight = owner.weight.to(hidden.dtype)
        if isinstance(weight, DTensor):  # and then it is still split by tensor parallelism
            return vocabulary_cross_entropy(hidden, weight, targets, loss_chunk, z_loss, self.scratch)
        return linear_cross_entropy(hidden, weight, targets, loss_chunk, z_loss, self.scratch)


def build_model(architecture: Architecture) -> Decoder:
    """Returns the decoder on the current default device (use `torch.device("meta")` for none)."""
    arguments: dict[str, Any] = {
        "vocab_size": architecture.vocab_size,
        "num_layers": architecture.num_layers,
        "num_heads": architecture.num_heads,
        "num_kv_heads": architecture.num_kv_heads,
        "embed_dim": architecture.embed_dim,
        "max_seq_len": architecture.max_seq_len,
        "rope_base": architecture.rope_base,
        "intermediate_dim": architecture.intermediate_dim,
        "norm_eps": architecture.norm_eps,
    }
    if architecture.tied_embeddings:
        # a scale factor of 1 is the identity, so this one builder covers tied models with and without scaling
        built = llama3_2(**arguments, scale_factor=architecture.rope_scale_factor)
    elif architecture.rope_scale_factor != 1:
        built = llama3_1(**arguments, scale_factor=architecture.rope_scale_factor)
    else:
        built = llama3(**arguments)
    names = ("tok_embeddings", "layers", "max_seq_len", "num_heads", "head_dim", "norm", "output")
    model = Decoder(**{name: getattr(built, name) for name in names})
    model.scratch = Scratch()
    return model


def build_sharded_model(architecture: Architecture, world: World, *modes: Any, **keys: Any) -> Decoder:
    """Builds the model of a run with empty storage on the rank's device; takes what `lay_out` takes.

    Returns:
        The model with uninitialised weights; `weights.load` or `weights.initialise` fills them.
    """
    return materialise(lay_out(architecture, world, *modes, **keys), world.device)


def lay_out(
    architecture: Architecture,
    world: World,
    precision: str,
    activations: str,
    storage: torch.dtype = torch.float32,
    compiled: bool = False,
    *,
    attention: str = "auto",
    cuda_graphs: bool = False,
    float8: str | None = None,
    layout: LayoutSettings | None = None,
    adapter: Any = None,
    trainable: str = "all",
) -> Decoder:
    """Builds on the meta device: decoder -> what learns -> attention -> float8 -> checkpointing -> compile -> sharding.

    Args:
        architecture: the decoder's shape.
        world: the ranks to shard over.
        precision: dtype of the computation, `fp32` or `bf16`.
        activations: what is kept for the backward pass, see `spare_activations`.
        storage: dtype in which parameters are stored and updated.
        compiled: whether each layer is compiled.
        attention: one of `attention.BACKENDS`; the model's `mask` is `Documents`.
        cuda_graphs: whether compiled layers are replayed as graphs.
        float8: recipe of the layers' matrix products, or None.
        layout: how it is spread; None: as the defaults say.
        adapter: `AdapterSettings`; None: all learns. With one `storage` is the dtype of what does not learn.
        trainable: one of `freezing.TRAINABLE`.
    """
    # torchtune's RMSNorm computes in fp32 with a bf16 scale; torch says at each run that it takes the unfused kernel
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
    with torch.device("meta"):
        model = build_model(architecture).to(storage)
    freeze(model, precision, trainable, adapter)
    backend = choose_backend(attention, world.device.type, precision, compiled)
    use_own_attention(model.layers, backend, takes_rows=attention == "auto")
    if float8:
        use_float8(model.layers, float8)
    spare_activations(model.layers, activations)
    if compiled:
        compile_layers(model, cuda_graphs)
    spread(model, world, precision, layout or LayoutSettings())
    return model


def materialise(model: Decoder, device: torch.device) -> Decoder:
    """Gives the parameters storage on the device, without values, and the rotary caches theirs."""
    model.to_empty(device=device)
    restore_rope(model, device)
    if not isinstance(model, FSDPModule):
        model.gradient_sums = GradientSums(model)
    return model


def restore_rope(model: nn.Module, device: torch.device) -> None:
    """Recomputes the rotary caches, which a model built on the meta device lacks; they stay in fp32."""
    with device:
        for module in model.modules():
            if rope_init := getattr(module, "rope_init", None):
                rope_init()


def plain_name(name: str) -> str:
    """Returns a parameter's name without what activation checkpointing adds to it."""
    return name.replace("_checkpoint_wrapped_module.", "")
