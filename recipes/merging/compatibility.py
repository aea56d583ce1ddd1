"""Whether models can be added tensor by tensor: every difference that would make the sum meaningless."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs.loader import UserError
from data_prep.hf_directory import ModelDirectory
from data_prep.lineage import sha256_file, sha256_json

FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
SHAPES_OF_A_MODEL = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
TOKENIZER_MODELS = ("tokenizer.model", "original/tokenizer.model")


class MergeError(UserError):
    """Models cannot be merged, or not into this place; the message names both sides."""


def refuse_incompatible(target: ModelDirectory, plus: ModelDirectory, minus: ModelDirectory) -> None:
    """Compares architecture, RoPE, heads, tokenizers, tensor names, shapes and dtypes of the three models.

    Chat templates and the settings around a tokenizer may differ, as base and instruct models do.

    Raises:
        MergeError: with every difference, each naming both directories.
    """
    problems = [text for model in (target, plus, minus) for text in _dtype_problems(model)]
    for other in (plus, minus):
        problems += _config_problems(target, other)
        problems += _tokenizer_problems(target, other)
        problems += _tensor_problems(target, other)
    if problems:
        unique = list(dict.fromkeys(problems))
        raise MergeError("\n  - ".join([f"{len(unique)} difference(s) forbid the merge", *unique]))


def rope_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Returns theta and scaling of a `config.json`, whichever of transformers' two layouts it has."""
    parameters = config.get("rope_parameters") or {}
    settings = {"rope_theta": config.get("rope_theta", 10000.0), **(config.get("rope_scaling") or {}), **parameters}
    kind = settings.pop("type", None)
    settings["rope_type"] = settings.get("rope_type") or kind or "default"
    return settings


def _config_problems(one: ModelDirectory, other: ModelDirectory) -> Iterator[str]:
    left, right = (_architecture(model.config) for model in (one, other))
    for key in left:
        if left[key] != right[key]:
            yield (
                f"{key} is {left[key]} in {one.path} but {right[key]} in {other.path}; "
                "a merge needs models of one base; give another directory"
            )


def _architecture(config: dict[str, Any]) -> dict[str, Any]:
    """Returns what must be equal, with transformers' Llama defaults for keys a file may leave out."""
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    return {
        **{key: config.get(key) for key in SHAPES_OF_A_MODEL},
        "num_key_value_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or (hidden // heads if heads and hidden else None),
        "hidden_act": config.get("hidden_act", "silu"),
        "rms_norm_eps": config.get("rms_norm_eps", 1e-6),
        "vocab_size": config.get("vocab_size"),
        "RoPE": rope_settings(config),
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
    }


def _dtype_problems(model: ModelDirectory) -> Iterator[str]:
    wrong = {entry.dtype: entry.name for entry in model.tensors.values() if entry.dtype not in FLOAT_DTYPES}
    for dtype, name in wrong.items():
        yield f"{name} in {model.path} is {dtype}; one of {', '.join(FLOAT_DTYPES)}; give the unquantized model"


def _tensor_problems(one: ModelDirectory, other: ModelDirectory) -> Iterator[str]:
    for here, there in ((one, other), (other, one)):
        if only := sorted(here.tensors.keys() - there.tensors.keys()):
            shown = ", ".join(only[:3]) + (f" and {len(only) - 3} more" if len(only) > 3 else "")
            yield f"tensors {shown} are in {here.path} but not in {there.path}; give models of one base"
    both = [(entry, other.tensors[name]) for name, entry in one.tensors.items() if name in other.tensors]
    differing = [(a, b) for a, b in both if a.shape != b.shape]
    for a, b in differing[:3]:
        yield (
            f"{a.name} has shape {list(a.shape)} in {one.path} but {list(b.shape)} in {other.path}"
            f" ({len(differing)} such tensors); give models of one base"
        )


def _tokenizer_problems(one: ModelDirectory, other: ModelDirectory) -> Iterator[str]:
    left, right = (_tokenizer_json(model.path) for model in (one, other))
    if left is None or right is None:
        models = [_tokenizer_model_sha256(model.path) for model in (one, other)]
        if None in models:
            yield (
                f"the tokenizers of {one.path} and {other.path} cannot be compared: no kind of file "
                "(tokenizer.json, tokenizer.model) is in both; add the one that is missing"
            )
        elif models[0] != models[1]:
            yield f"tokenizer.model differs in {one.path} and {other.path}; give models of one tokenizer"
        return
    for part in ("vocabulary", "merges"):
        if left[part] != right[part]:
            yield f"the {part} of tokenizer.json differs in {one.path} and {other.path}; give models of one tokenizer"
    for token in sorted(left["ids"].keys() & right["ids"].keys()):
        if left["ids"][token] != right["ids"][token]:
            yield (
                f"the added token {token!r} has id {left['ids'][token]} in {one.path} but {right['ids'][token]} "
                f"in {other.path}; give models of one tokenizer"
            )


def _tokenizer_json(folder: Path) -> dict[str, Any] | None:
    """Returns hashes of vocabulary and merges, and the added tokens' ids; None without the file."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        model = content["model"]
        added = {token["content"]: token["id"] for token in content.get("added_tokens", [])}
    except (ValueError, KeyError, TypeError) as error:
        raise MergeError(f"{file} is no tokenizer file: {error!r}; copy it again") from None
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model.get("merges", [])]
    return {"vocabulary": sha256_json(model.get("vocab")), "merges": sha256_json(merges), "ids": added}


def _tokenizer_model_sha256(folder: Path) -> str | None:
    files = [folder / name for name in TOKENIZER_MODELS if (folder / name).is_file()]
    return sha256_file(files[0]) if files else None
