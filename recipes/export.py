"""Turns a training run into a Hugging Face directory that transformers and vLLM load, or into adapters for PEFT.

    tune run --nproc_per_node 1 recipes/export.py --config configs/export/llama3_8b.yaml \
        run=out/cpt/llama3_8b_ko output_dir=out/models/llama3_8b_ko

All is written to `output_dir.tmp` and the weights read back bit for bit before the directory gets its name.
"""

import os
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from omegaconf import MISSING, DictConfig, OmegaConf

from configs.loader import ConfigError, existing_path, one_of, parse
from data_prep.dialogue.named_templates import name_problems
from data_prep.dialogue.tokenizer_files import write_tokenizer
from data_prep.lineage import MANIFEST, write_json, write_manifest
from recipes.training.checkpoints.checkpoint import latest_checkpoint, read_state
from recipes.training.checkpoints.folder import check_files
from recipes.training.loop import open_weights
from recipes.training.model import export_files
from recipes.training.model.decoder import Architecture


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
    """`keep`: the one of the run's SFT, else what the tokenizer directory has; or a name, as `chat_template` of SFT."""
    dtype: str = "bf16"
    """Of the written weights: bf16 or fp32; adapters kept apart are fp32."""
    adapter: str = "merge"
    """Of a run with adapters: `merge` adds them to its base, a whole model; `keep` writes them alone, for PEFT."""
    adapter_base: str | None = None
    """What kept adapters say they belong to, such as a name on the hub; default: the weights the run started from."""
    seed: int = 0
    """Unused: nothing is drawn."""
    device: str = "cpu"
    """Unused: export computes nothing on a device."""


def check(cfg: DictConfig) -> list[str]:
    """Returns the problems of the settings."""
    choices = {"dtype": ["bf16", "fp32"], "adapter": ["merge", "keep"]}
    problems = [problem for key, values in choices.items() for problem in one_of(cfg, key, values)]
    if cfg.chat_template != "keep":
        problems += [f"chat_template: {problem}" for problem in name_problems(cfg.chat_template)]
    folder = Path(cfg.output_dir)
    if any(folder.glob("*")) and not is_export(folder):
        problems.append(f"output_dir: {folder} holds files that are no export; give an empty or absent folder")
    return problems + existing_path(cfg, "run", "tokenizer")


def is_export(folder: Path) -> bool:
    """Whether an export wrote the folder, so that another may take its place."""
    manifest = folder / MANIFEST
    text = manifest.read_text(encoding="utf-8") if manifest.is_file() else ""
    return any(f'"kind": "{kind}"' in text for kind in ("model", "adapter"))


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


def template_of(cfg: DictConfig, trained: DictConfig) -> str:
    """Returns the name of the chat template that the model gets."""
    return str(trained.get("chat_template") or "weights") if cfg.chat_template == "keep" else str(cfg.chat_template)


def write_files(cfg: DictConfig, trained: DictConfig, checkpoint: Path, shape: Architecture, folder: Path) -> str:
    """Writes all files but the manifest; returns in words what the weights are."""
    read = partial(export_files.read_parameter, checkpoint)
    end_ids = write_tokenizer(Path(cfg.tokenizer or trained.weights), folder, template_of(cfg, trained))
    if cfg.adapter == "keep":
        export_files.write_adapters(folder, trained, shape, read, cfg.adapter_base or trained.weights)
        return f"{trained.adapter.kind} adapters"
    dtype, torch_dtype = ("BF16", "bfloat16") if cfg.dtype == "bf16" else ("F32", "float32")
    config = shape.to_hf(*end_ids, torch_dtype)
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {key: config[key] for key in ("bos_token_id", "eos_token_id")})
    parameters = export_files.model_shapes(shape)
    export_files.write_model(
        folder, export_files.model_reader(trained, shape, read, parameters), parameters, shape, dtype
    )
    return f"{dtype} weights{' with the adapters' if trained.get('adapter') else ''}"


@parse(ExportConfig, check)
def main(cfg: DictConfig) -> int:
    """Exports a run as a Hugging Face directory."""
    if os.environ.get("RANK", "0") != "0":
        return 0
    run, folder, unfinished = Path(cfg.run), Path(cfg.output_dir), Path(f"{Path(cfg.output_dir)}.tmp")
    trained, checkpoint, architecture = read_run(run)
    if not (cfg.tokenizer or trained.weights):
        raise ConfigError(run, ["started from no weights; name the tokenizer's directory as tokenizer=..."])
    if folder.resolve() in (Path(path).resolve() for path in (cfg.tokenizer, trained.weights) if path):
        raise ConfigError("output_dir", [f"{folder} is the export's own input; give a folder of its own"])
    if cfg.adapter == "keep" and not trained.get("adapter"):
        raise ConfigError("adapter", [f"keep, but {run} trained the whole model; export it with adapter=merge"])
    state = read_state(checkpoint)
    check_files(checkpoint)
    export_files.check_base(trained, state)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    written = write_files(cfg, trained, checkpoint, architecture, unfinished)
    inputs = {"checkpoint": checkpoint / "state.json"} | ({"weights": Path(trained.weights)} if trained.weights else {})
    kinds = {"merge": "model", "keep": "adapter"}
    write_manifest(
        unfinished, inputs, kind=kinds[cfg.adapter], run=str(run), step=state["step"], ledger=state["ledger"]
    )
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    print(f"{folder}: {written} of {checkpoint.name}, read back bit for bit")
    return 0


if __name__ == "__main__":
    main()
