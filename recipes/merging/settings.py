"""What a merge is asked for: models, scales, and the rules for what differs."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, DictConfig

from configs.loader import existing_path, one_of

VOCABULARY_RULES = ("same", "keep_target_rows", "by_token", "exclude_embeddings")
KIND_SCALES = ("attention_scale", "mlp_scale", "norms_scale", "embeddings_scale", "head_scale")
SCALES = ("scale", *KIND_SCALES)
USUAL = "set one, usually between 0 and 1.5"


@dataclass
class LayerFactor:
    """Multiplies the scales of the layers first to last, both counted from 0 and included."""

    first: int = MISSING
    last: int = MISSING
    factor: float = MISSING


@dataclass
class VectorConfig:
    """One chat vector, plus - minus, and how much of it is added."""

    plus: str = MISSING
    """The instruction-tuned model; a Hugging Face directory."""
    minus: str = MISSING
    """The base that `plus` was tuned from."""
    scale: float = 1.0
    """1 adds the vector as it is; the kinds below may have scales of their own, null is this one."""
    attention_scale: float | None = None
    mlp_scale: float | None = None
    norms_scale: float | None = None
    embeddings_scale: float | None = None
    """Of embed_tokens, and of the head tied to it."""
    head_scale: float | None = None
    """Of lm_head."""
    layers: list[LayerFactor] = field(default_factory=list)
    """Factors on the scales of ranges of layers; layers in no range have 1."""
    density: float = 1.0
    """TIES: share of a tensor's differences that is kept, the largest ones (arXiv 2306.01708); 1 keeps all."""
    drop_rate: float = 0.0
    """DARE: share of the differences dropped at random, the rest divided by 1 - drop_rate (arXiv 2311.03099)."""


@dataclass
class MergeConfig(VectorConfig):
    """The model that learns to chat, and every vector added to it."""

    target: str = MISSING
    """The model the vectors are added to, e.g. a Korean base; a Hugging Face directory."""
    further: list[VectorConfig] = field(default_factory=list)
    """More vectors beside the first."""
    combine: str = "sum"
    """`sum`, or `ties`: where vectors disagree in sign, the mean of those on the heavier side."""
    vocabulary: str = "same"
    """`same`: another tokenizer or number of rows is refused. `keep_target_rows`: the rows all models share get the
    vector, the target's further rows stay. `by_token`: rows of one token string get it, whatever their ids.
    `exclude_embeddings`: embed_tokens and lm_head stay the target's."""
    chat_from: str = "plus"
    """Whose chat template, special tokens, end tokens and generation settings the result has: plus or target."""
    seed: int = 0
    """Of what `drop_rate` drops; nothing else is drawn."""

    def vectors(self) -> list[VectorConfig]:
        """Returns all vectors, the first one first."""
        return [self, *self.further]

    def inputs(self) -> dict[str, str]:
        """Returns the directories by role: target, plus, minus, plus_2, minus_2, ..."""
        found = {"target": self.target}
        for number, vector in enumerate(self.vectors(), start=1):
            suffix = "" if number == 1 else f"_{number}"
            found |= {f"plus{suffix}": vector.plus, f"minus{suffix}": vector.minus}
        return found

    def facts(self) -> dict[str, Any]:
        """Returns everything but paths that the result depends on, as a manifest records it."""
        names = [f.name for f in dataclasses.fields(VectorConfig) if f.name not in ("plus", "minus")]
        vectors = [
            {
                name: [dataclasses.asdict(r) for r in v.layers] if name == "layers" else getattr(v, name)
                for name in names
            }
            for v in self.vectors()
        ]
        rules = {key: getattr(self, key) for key in ("combine", "vocabulary", "chat_from", "seed")}
        return {"vectors": vectors, **rules}


def scaled(settings: MergeConfig, factor: float) -> MergeConfig:
    """Returns the settings with every scale multiplied, so that the scales of the kinds keep their proportions."""

    def times(vector: VectorConfig) -> dict[str, float]:
        return {key: value * factor for key in SCALES if (value := getattr(vector, key)) is not None}

    further = [dataclasses.replace(vector, **times(vector)) for vector in settings.further]  # type: ignore[arg-type]
    return dataclasses.replace(settings, further=further, **times(settings))  # type: ignore[arg-type]


def problems(cfg: DictConfig) -> list[str]:
    """Returns everything wrong with a `MergeConfig`, each with its key."""
    found = existing_path(cfg, "target", "plus", "minus")
    found += one_of(cfg, "combine", ("sum", "ties")) + one_of(cfg, "vocabulary", VOCABULARY_RULES)
    found += one_of(cfg, "chat_from", ("plus", "target"))
    found += _vector_problems(cfg, "")
    for number, vector in enumerate(cfg.further):
        missing = existing_path(vector, "plus", "minus")
        found += [f"further[{number}].{text}" for text in missing]
        found += _vector_problems(vector, f"further[{number}].")
    return found


def _vector_problems(cfg: DictConfig, prefix: str) -> Iterator[str]:
    for key in SCALES:
        if cfg[key] is not None and not math.isfinite(cfg[key]):
            yield f"{prefix}{key}: {cfg[key]} is no finite number; {USUAL}"
    if not 0 < cfg.density <= 1:
        yield f"{prefix}density: {cfg.density} is outside (0, 1]; TIES keeps 0.2 of the differences, 1 keeps all"
    if not 0 <= cfg.drop_rate < 1:
        yield f"{prefix}drop_rate: {cfg.drop_rate} is outside [0, 1); DARE drops 0.9 of the differences, 0 none"
    taken: dict[int, int] = {}
    for number, layers in enumerate(cfg.layers):
        key = f"{prefix}layers[{number}]"
        if not 0 <= layers.first <= layers.last:
            yield f"{key}: first {layers.first} and last {layers.last} are no range; 0 <= first <= last; mend them"
            continue
        if not math.isfinite(layers.factor):
            yield f"{key}: factor {layers.factor} is no finite number; {USUAL}"
        for layer in range(layers.first, layers.last + 1):
            if layer in taken:
                yield f"{key}: layer {layer} is in layers[{taken[layer]}] too; a layer has one factor; part the ranges"
                break
            taken[layer] = number
