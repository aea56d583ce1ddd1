"""Gives a model rows for the new pieces of an extended tokenizer: a Hugging Face directory to go on training from.

    python -m recipes.extend --config configs/extend/llama2_ko_7b.yaml [key=value ...]

Each new row of the embedding is the average of the old pieces' that the new one was written with; all else is copied
bit for bit. `recipes/cpt.py` with `trainable: embeddings` then warms the rows up, and without it trains all.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING, DictConfig

from configs.entry import parse
from configs.loader import existing_path, one_of, positive
from data_prep.disk import check_free, disk_full
from data_prep.hf_directory import TOKENIZER_FILES, ModelDirectory
from data_prep.lineage import MANIFEST, write_json, write_manifest
from data_prep.tokens.tokenizer import load_tokenizer
from data_prep.tokens.tokenizer_formats import Tokenizer
from data_prep.tokens.vocab_pieces import new_pieces
from recipes.merging.extension import HEADS, Extension, plan_extension, write_extended

KIND = "extended model"
SHOWN = 3
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "original/tokenizer.model", "added_tokens.json")


@dataclass
class ExtendConfig:
    """One model and one tokenizer to a model of that tokenizer."""

    output_dir: str = MISSING
    """Hugging Face directory to write."""
    weights: str = MISSING
    """Hugging Face directory of the model, its tokenizer beside it."""
    tokenizer: str = MISSING
    """Folder of the extended tokenizer, as `python -m data_prep extend-vocab` writes it, or another's that keeps all
    tokens of the model's. Give extend-vocab the model directory, not a file of it: transformers needs the form that the
    directory has."""
    head: str = "mean"
    """What a new row of the output layer begins as: the `mean` of its old pieces' rows, or that of the `first`."""
    pad_to_multiple_of: int = 64
    """The number of rows is rounded up to a multiple: GPUs multiply such matrices faster, and tensor parallelism needs
    it. No token has the last rows; they begin as the average of the old vocabulary's."""


def check(cfg: DictConfig) -> list[str]:
    """Returns the problems of the settings."""
    problems = one_of(cfg, "head", HEADS) + positive(cfg, "pad_to_multiple_of")
    problems += existing_path(cfg, "weights", "tokenizer")
    if Path(cfg.tokenizer).is_file():
        problems.append(
            f"tokenizer: {cfg.tokenizer} is a file; the folder is expected; give {Path(cfg.tokenizer).parent}"
        )
    folder = Path(cfg.output_dir)
    manifest = folder / MANIFEST
    is_own = manifest.is_file() and f'"kind": "{KIND}"' in manifest.read_text(encoding="utf-8")
    if any(folder.glob("*")) and not is_own:
        problems.append(f"output_dir: {folder} holds files that are no extended model; give an empty or absent folder")
    return problems


def write_files(extension: Extension, cfg: DictConfig, folder: Path) -> None:
    """Writes weights, configuration and tokenizer."""
    write_extended(extension, folder)
    model, tokenizer = extension.model, Path(cfg.tokenizer)
    write_json(folder / "config.json", {**model.config, "vocab_size": extension.num_rows})
    if (settings := model.path / "generation_config.json").is_file():
        shutil.copyfile(settings, folder / settings.name)
    for name in TOKENIZER_FILES:
        # what the new tokenizer's folder does not tell, such as a chat template, is as it was
        places = [tokenizer] if name in VOCABULARY_FILES else [tokenizer, model.path]
        if source := next((place / name for place in places if (place / name).is_file()), None):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / name)


def describe(extension: Extension, old: Tokenizer, new: Tokenizer) -> str:
    """Returns in words what the rows are, with examples."""
    rows, pieces = extension.num_rows, extension.pieces
    mean = sum(map(len, pieces.values())) / len(pieces)
    unused = rows - max(extension.model.tensors[extension.matrices[0]].shape[0], max(pieces) + 1)
    lines = [
        f"{extension.num_old:,} tokens and {len(pieces):,} new ones, each of {mean:.2f} old ones on average; "
        f"{rows:,} rows, {unused} of them padding; {' and '.join(extension.matrices)}"
    ]
    longest = sorted(pieces, key=lambda id_: -len(pieces[id_]))[:SHOWN]
    lines += [
        f"  {id_} {new.piece(id_)!r} = {' + '.join(repr(old.piece(one)) for one in pieces[id_])}" for id_ in longest
    ]
    return "\n".join(lines)


@parse(ExtendConfig, check)
def main(cfg: DictConfig) -> int:
    """Extends a model by the new pieces of a tokenizer."""
    if os.environ.get("RANK", "0") != "0":
        return 0
    folder, unfinished = Path(cfg.output_dir), Path(f"{cfg.output_dir}.tmp")
    weights, tokenizer = Path(cfg.weights), Path(cfg.tokenizer)
    old, new = load_tokenizer(weights), load_tokenizer(tokenizer)
    pieces, model = new_pieces(old, new), ModelDirectory.open(weights)
    extension = plan_extension(model, pieces, old.vocab_size, cfg.pad_to_multiple_of, cfg.head)
    check_free(folder, extension.output_bytes, "the extended model")
    print(describe(extension, old, new))
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    with disk_full(unfinished):
        write_files(extension, cfg, unfinished)
        facts = {"old": old.vocab_size, "new": len(pieces), "rows": extension.num_rows, "head": cfg.head}
        write_manifest(unfinished, {"weights": weights, "tokenizer": tokenizer}, kind=KIND, vocabulary=facts)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    print(f"{folder}: the weights of {weights} with the tokenizer of {tokenizer}")
    return 0


if __name__ == "__main__":
    main()
