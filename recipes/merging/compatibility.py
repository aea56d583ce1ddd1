"""Whether models can be added tensor by tensor: every difference that would make the sum meaningless."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.lineage import sha256_file, sha256_json
from recipes.merging.errors import MergeError
from recipes.merging.names import EMBEDDINGS, HEAD, LanguagePart
from recipes.merging.vocabulary import TOKENIZER_MODELS, row_problems, tokenizer_json

FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
SHAPES_OF_A_MODEL = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def refuse_incompatible(
    target: LanguagePart, vectors: Sequence[tuple[LanguagePart, LanguagePart]], vocabulary: str = "same"
) -> None:
    """Compares architecture, RoPE, heads, tokenizers, tensor names, shapes and dtypes of all models with the target's.

    Chat templates and the settings around a tokenizer may differ, as base and instruct models do. Under another
    rule than `same` the vocabularies may differ as far as the rule can deal with it.

    Raises:
        MergeError: with every difference, each naming both directories.
    """
    others = list({id(part): part for pair in vectors for part in pair}.values())
    problems = [text for model in (target, *others) for text in _dtype_problems(model)]
    for other in others:
        problems += _config_problems(target, other, vocabulary)
        problems += _tensor_problems(target, other, vocabulary)
        if vocabulary == "same":
            problems += _tokenizer_problems(target.model.path, other.model.path)
        elif vocabulary != "exclude_embeddings":
            problems += row_problems(vocabulary, target, other)
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


def _config_problems(one: LanguagePart, other: LanguagePart, vocabulary: str) -> Iterator[str]:
    left, right = (_architecture(part, vocabulary) for part in (one, other))
    for key in left:
        if left[key] != right[key]:
            yield (
                f"{key} is {left[key]} in {one.model.path} but {right[key]} in {other.model.path}; "
                "a merge needs models of one base; give another directory"
                + (_vocabulary_hint() if key == "vocab_size" else "")
            )


def _architecture(part: LanguagePart, vocabulary: str) -> dict[str, Any]:
    """Returns what must be equal, with transformers' Llama defaults for keys a file may leave out."""
    config = part.config
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    return {
        **{key: config.get(key) for key in SHAPES_OF_A_MODEL},
        "num_key_value_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or (hidden // heads if heads and hidden else None),
        "hidden_act": config.get("hidden_act", "silu"),
        "rms_norm_eps": config.get("rms_norm_eps", 1e-6),
        "RoPE": rope_settings(config),
        "tie_word_embeddings": part.is_tied,
        **({"vocab_size": config.get("vocab_size")} if vocabulary == "same" else {}),
    }


def _vocabulary_hint() -> str:
    return ", or state with vocabulary=... what becomes of rows that only one has"


def _dtype_problems(part: LanguagePart) -> Iterator[str]:
    wrong = {entry.dtype: entry.name for entry in part.tensors.values() if entry.dtype not in FLOAT_DTYPES}
    for dtype, name in wrong.items():
        yield f"{name} in {part.model.path} is {dtype}; one of {', '.join(FLOAT_DTYPES)}; give the unquantized model"


def _tensor_problems(one: LanguagePart, other: LanguagePart, vocabulary: str) -> Iterator[str]:
    for here, there in ((one, other), (other, one)):
        if only := sorted(here.tensors.keys() - there.tensors.keys()):
            shown = ", ".join(only[:3]) + (f" and {len(only) - 3} more" if len(only) > 3 else "")
            yield f"tensors {shown} are in {here.model.path} but not in {there.model.path}; give models of one base"
    shapes = [
        (name, entry.shape, other.tensors[name].shape) for name, entry in one.tensors.items() if name in other.tensors
    ]
    differing = [(n, a, b) for n, a, b in shapes if a != b and not _may_differ(n, a, b, vocabulary)]
    for name, a, b in differing[:3]:
        yield (
            f"{name} has shape {list(a)} in {one.model.path} but {list(b)} in {other.model.path}"
            f" ({len(differing)} such tensors); give models of one base"
            + (_vocabulary_hint() if name in (EMBEDDINGS, HEAD) else "")
        )


def _may_differ(name: str, one: tuple[int, ...], other: tuple[int, ...], vocabulary: str) -> bool:
    """Whether two shapes of a tensor differ only in rows that the rule deals with."""
    return vocabulary != "same" and name in (EMBEDDINGS, HEAD) and one[1:] == other[1:]


def _tokenizer_problems(one: Path, other: Path) -> Iterator[str]:
    left, right = (_fingerprint(folder) for folder in (one, other))
    if left is None or right is None:
        models = [_tokenizer_model_sha256(folder) for folder in (one, other)]
        if None in models:
            yield (
                f"the tokenizers of {one} and {other} cannot be compared: no kind of file "
                "(tokenizer.json, tokenizer.model) is in both; add the one that is missing"
            )
        elif models[0] != models[1]:
            yield f"tokenizer.model differs in {one} and {other}; give models of one tokenizer" + _vocabulary_hint()
        return
    for part in ("vocabulary", "merges"):
        if left[part] != right[part]:
            yield (
                f"the {part} of tokenizer.json differs in {one} and {other}; give models of one tokenizer"
                + _vocabulary_hint()
            )
    for token in sorted(left["ids"].keys() & right["ids"].keys()):
        if left["ids"][token] != right["ids"][token]:
            yield (
                f"the added token {token!r} has id {left['ids'][token]} in {one} but {right['ids'][token]} "
                f"in {other}; give models of one tokenizer"
            )


def _fingerprint(folder: Path) -> dict[str, Any] | None:
    """Returns hashes of vocabulary and merges, and the added tokens' ids; None without the file."""
    content = tokenizer_json(folder)
    if content is None:
        return None
    model = content["model"]
    added = {token["content"]: token["id"] for token in content.get("added_tokens") or []}
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model.get("merges", [])]
    return {"vocabulary": sha256_json(model.get("vocab")), "merges": sha256_json(merges), "ids": added}


def _tokenizer_model_sha256(folder: Path) -> str | None:
    files = [folder / name for name in TOKENIZER_MODELS if (folder / name).is_file()]
    return sha256_file(files[0]) if files else None
