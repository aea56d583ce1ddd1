"""What the tensors of a model are called: one name for each in all layouts, its kind, and its layer."""

import re
from dataclasses import dataclass
from typing import Any

from data_prep.hf_directory import ModelDirectory, TensorEntry
from recipes.merging.settings import VectorConfig

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# transformers below 4.52, and from there on
LANGUAGE_PREFIXES = (
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
)
BUFFERS = (".rotary_emb.inv_freq",)  # computed from config.json; some checkpoints carry them
LAYER = re.compile(r"\.layers\.(\d+)\.")
# transformers' defaults of a Llama, which a text_config may leave out
LLAMA_DEFAULTS = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}


@dataclass(frozen=True)
class LanguagePart:
    """The language model of a directory, whatever else the directory holds.

    Attributes:
        model: the directory.
        config: the language model's settings.
        tensors: the language model's tensors by the name a plain Llama gives them; without a head that is stored
            though it is tied, as that is the embedding once more.
        others: names of all other tensors (vision tower, projector, buffers), as they are stored.
    """

    model: ModelDirectory
    config: dict[str, Any]
    tensors: dict[str, TensorEntry]
    others: list[str]

    @property
    def is_tied(self) -> bool:
        """Whether the head is the embedding; a wrapping model's own key counts as well."""
        return bool(self.config.get("tie_word_embeddings", self.model.config.get("tie_word_embeddings", False)))


def language_part(model: ModelDirectory) -> LanguagePart:
    """Returns the language model of a plain Llama or of one within a vision model (LLaVA)."""
    text_config = model.config.get("text_config")
    wraps = isinstance(text_config, dict)
    config = {**LLAMA_DEFAULTS, **text_config} if isinstance(text_config, dict) else model.config
    tensors, others = {}, []
    for name, entry in model.tensors.items():
        plain = language_name(name, wraps)
        if plain is None:
            others.append(name)
        else:
            tensors[plain] = entry
    part = LanguagePart(model, config, tensors, others)
    if part.is_tied:
        tensors.pop(HEAD, None)
    return part


def language_name(name: str, wraps: bool) -> str | None:
    """Returns the name that a plain Llama gives to a tensor, None for a tensor that is not the language model's.

    Args:
        name: as stored.
        wraps: whether the model wraps a language model, i.e. its configuration has a `text_config`.
    """
    if name.endswith(BUFFERS):
        return None
    if not wraps or name == HEAD:
        return name
    for prefix, plain in LANGUAGE_PREFIXES:
        if name.startswith(prefix):
            return plain + name.removeprefix(prefix)
    return None


def kind_of(name: str) -> str:
    """Returns attention, mlp, norms, embeddings or head; `other` for what no Llama has."""
    if name in (EMBEDDINGS, HEAD):
        return "embeddings" if name == EMBEDDINGS else "head"
    if name.endswith("norm.weight"):
        return "norms"
    return next((kind for part, kind in ((".self_attn.", "attention"), (".mlp.", "mlp")) if part in name), "other")


def layer_of(name: str) -> int | None:
    """Returns the number of a tensor's layer, None outside the layers."""
    found = LAYER.search(name)
    return int(found[1]) if found else None


def scale_of(vector: VectorConfig, name: str) -> float:
    """Returns the scale of a tensor: its kind's, else the vector's, times the factor of its layer."""
    own = getattr(vector, f"{kind_of(name)}_scale", None)
    layer = layer_of(name)
    factors = [r.factor for r in vector.layers if layer is not None and r.first <= layer <= r.last]
    return (vector.scale if own is None else own) * (factors[0] if factors else 1.0)
