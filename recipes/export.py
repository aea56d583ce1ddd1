"""Turns a training run into a Hugging Face directory that transformers and vLLM load.

    tune run --nproc_per_node 1 recipes/export.py --config configs/export/llama3_8b.yaml \
        run=out/cpt/llama3_8b_ko output_dir=out/models/llama3_8b_ko

All is written to `output_dir.tmp` and the weights read back bit for bit before the directory gets its name.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import MISSING, DictConfig, OmegaConf

from configs.loader import ConfigError, existing_path, one_of, parse
from data_prep.dialogue.chat_template import LLAMA3
from data_prep.hf_directory import TOKENIZER_FILES, ModelDirectory
from data_prep.lineage import MANIFEST, write_json, write_manifest
from data_prep.tokens.tokenizer import load_tokenizer
from recipes.merging.directory import has_chat_template
from recipes.training.checkpoints.checkpoint import latest_checkpoint, load_tensors, read_state
from recipes.training.loop import open_weights
from recipes.training.model import weights
from recipes.training.model.decoder import Architecture, build_model

END_OF_TURN = "<|eot_id|>"


@dataclass
class ExportConfig:
    """One run to one model directory."""

    output_dir: str = MISSING
    """Hugging Face directory to write."""
    run: str = MISSING
    """Run folder; its newest complete checkpoint is exported."""
    tokenizer: str | None = None
    """Directory with the tokenizer files; default: the weights the run started from."""
    chat_template: str = "keep"
    """`keep`: what the tokenizer directory has; `llama3`: Llama-3-Instruct's, and its end of turn ends an answer."""
    dtype: str = "bf16"
    """Of the written weights: bf16 or fp32."""
    seed: int = 0
    """Unused: nothing is drawn."""
    device: str = "cpu"
    """Unused: export computes nothing on a device."""


def check(cfg: DictConfig) -> list[str]:
    """Returns the problems of the settings."""
    problems = one_of(cfg, "chat_template", ["keep", "llama3"]) + one_of(cfg, "dtype", ["bf16", "fp32"])
    folder = Path(cfg.output_dir)
    if any(folder.glob("*")) and not is_export(folder):
        problems.append(f"output_dir: {folder} holds files that are no export; give an empty or absent folder")
    return problems + existing_path(cfg, "run", "tokenizer")


def is_export(folder: Path) -> bool:
    """Whether an export wrote the folder, so that another may take its place."""
    manifest = folder / MANIFEST
    return manifest.is_file() and '"kind": "model"' in manifest.read_text(encoding="utf-8")


def read_run(run: Path) -> tuple[DictConfig, Path, Architecture]:
    """Returns the run's configuration, its newest checkpoint and the model's shape.

    Raises:
        ConfigError: the folder is no run folder or has no complete checkpoint.
    """
    checkpoint = latest_checkpoint(run / "checkpoints")
    if checkpoint is None or not (run / "config.yaml").is_file():
        raise ConfigError(run, ["holds no complete checkpoint; give the output_dir of a training run"])
    trained = OmegaConf.load(run / "config.yaml")
    assert isinstance(trained, DictConfig)
    if trained.weights:
        return trained, checkpoint, open_weights(trained.weights)[1]
    return trained, checkpoint, Architecture(**trained.model)


def write_weights(checkpoint: Path, architecture: Architecture, folder: Path, dtype: str) -> None:
    """Writes the checkpoint's tensors as safetensors, then reads them back and compares bit for bit.

    Raises:
        ConfigError: a tensor read back differs, so the disk or the conversion is at fault.
    """
    with torch.device("meta"):
        parameters = dict(build_model(architecture).named_parameters())

    def read(name: str) -> torch.Tensor:
        tensor = torch.empty(parameters[name].shape)
        load_tensors(checkpoint, {"model": {name: tensor}}, alone=True)
        return tensor

    weights.write_hf(folder, read, {n: p.shape for n, p in parameters.items()}, architecture, dtype)
    model = build_model(architecture)
    weights.load(model, ModelDirectory.open(folder), architecture)
    rounded = weights.TORCH_DTYPES[dtype]
    if wrong := [n for n, p in model.named_parameters() if not torch.equal(p.data, read(n).to(rounded).float())]:
        raise ConfigError(folder, [f"tensor {wrong[0]} read back differs from the checkpoint; export again"])


def write_tokenizer(source: Path, folder: Path, chat_template: str) -> tuple[int, list[int]]:
    """Copies the tokenizer files, adds the chat template, and returns the BOS id and the ids that end a text."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / name)
    tokenizer = load_tokenizer(source)
    if chat_template == "llama3":
        (folder / "chat_template.jinja").write_text(LLAMA3, encoding="utf-8")
    end_of_turn = tokenizer.special_tokens.get(END_OF_TURN)
    eos_ids = [tokenizer.eos_id, *([end_of_turn] if has_chat_template(folder) and end_of_turn is not None else [])]
    return tokenizer.bos_id, eos_ids


@parse(ExportConfig, check)
def main(cfg: DictConfig) -> int:
    """Exports a run as a Hugging Face directory."""
    if os.environ.get("RANK", "0") != "0":
        return 0
    run, folder, partial = Path(cfg.run), Path(cfg.output_dir), Path(f"{Path(cfg.output_dir)}.tmp")
    trained, checkpoint, architecture = read_run(run)
    source = Path(cfg.tokenizer or trained.weights or "")
    if not (cfg.tokenizer or trained.weights):
        raise ConfigError(run, ["started from no weights; name the tokenizer's directory as tokenizer=..."])
    if folder.resolve() in [Path(path).resolve() for path in (cfg.tokenizer, trained.weights) if path]:
        raise ConfigError("output_dir", [f"{folder} is the export's own input; give a folder of its own"])
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    dtype, torch_dtype = ("BF16", "bfloat16") if cfg.dtype == "bf16" else ("F32", "float32")
    config = architecture.to_hf(*write_tokenizer(source, partial, cfg.chat_template), torch_dtype)
    write_json(partial / "config.json", config)
    write_json(partial / "generation_config.json", {key: config[key] for key in ("bos_token_id", "eos_token_id")})
    write_weights(checkpoint, architecture, partial, dtype)
    inputs = {"checkpoint": checkpoint / "state.json"} | ({"weights": Path(trained.weights)} if trained.weights else {})
    state = read_state(checkpoint)
    write_manifest(partial, inputs, kind="model", run=str(run), step=state["step"], ledger=state["ledger"])
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    print(f"{folder}: {dtype} weights of {checkpoint.name}, read back bit for bit")
    return 0


if __name__ == "__main__":
    main()
