"""Turns a training run into a Hugging Face directory that transformers and vLLM load, or into adapters for PEFT.

    tune run --nproc_per_node 1 recipes/export.py --config configs/export/llama3_8b_ko.yaml \
        run=out/cpt/llama3_8b_ko output_dir=out/models/llama3_8b_ko

All is written to `output_dir.tmp`. Before the directory gets its name, the weights are read back bit for bit and, with
gate=transformers, that library loads it and is compared with the trained model. `recipes/EXPORT.md` tells what that
needs, and how the directory goes on to vLLM, llama.cpp and the Hub.
"""

import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig

from configs.entry import parse
from configs.loader import ConfigError
from data_prep.hub_upload import push
from data_prep.lineage import write_json, write_manifest
from data_prep.model_card import CARD, licence_files, licence_of, read_header, write_notice
from recipes.evaluation.report.sources import read_sources
from recipes.evaluation.report.tables import markdown_table, scores_by_task, text_table
from recipes.training.checkpoints.chosen import chosen_checkpoint
from recipes.training.checkpoints.folder import check_files, read_state
from recipes.training.export import files
from recipes.training.export.card import lineage_of, model_card, stage_of
from recipes.training.export.gate import run_gate
from recipes.training.export.settings import ExportConfig, check, generation_config
from recipes.training.export.tokenizer import write_tokenizer_files
from recipes.training.model.decoder import Architecture
from recipes.training.model.opening import find_checkpoint


def refuse_impossible(cfg: DictConfig, trained: DictConfig) -> None:
    """Checks that the settings fit the run.

    Raises:
        ConfigError: they do not.
    """
    folder = Path(cfg.output_dir)
    if folder.resolve() in (Path(path).resolve() for path in (cfg.tokenizer, trained.weights) if path):
        raise ConfigError("output_dir", [f"{folder} is the export's own input; give a folder of its own"])
    if cfg.adapter == "keep" and not trained.get("adapter"):
        raise ConfigError("adapter", [f"keep, but {cfg.run} trained the whole model; export it with adapter=merge"])


def write_files(
    cfg: DictConfig, trained: DictConfig, checkpoint: Path, shape: Architecture, folder: Path
) -> tuple[str, str]:
    """Writes tokenizer, weights and settings; returns in words what the weights are, and what the gate found."""
    read = partial(files.read_parameter, checkpoint)
    bos_id, end_ids, pad = write_tokenizer_files(cfg, trained, folder)
    kept = cfg.adapter == "keep"  # PEFT loads them over the base as it lies on disk
    parameters = files.model_shapes(shape)
    reader = files.model_reader(trained, shape, read, parameters, as_trained=not kept)
    if kept:
        files.write_adapters(folder, trained, shape, read, cfg.adapter_base or trained.weights)
        written = f"{trained.adapter.kind} adapters"
    else:
        dtype, torch_dtype = ("BF16", "bfloat16") if cfg.dtype == "bf16" else ("F32", "float32")
        config = {**shape.to_hf(bos_id, end_ids, torch_dtype), **pad}
        write_json(folder / "config.json", config)
        ids = {key: config[key] for key in ("bos_token_id", "eos_token_id")} | pad
        write_json(folder / "generation_config.json", generation_config(cfg, ids))
        files.write_model(folder, reader, parameters, shape, dtype)
        written = f"{dtype} weights{' with the adapters' if trained.get('adapter') else ''}"
    return written, run_gate(cfg, trained, shape, reader, folder)


def write_card(
    cfg: DictConfig, trained: DictConfig, stages: list[dict[str, Any]], folder: Path, gate: str
) -> list[str]:
    """Writes README.md, licence files and notice; returns what the card does not say."""
    weights = Path(trained.weights or folder)
    told = read_header(weights)
    licence = cfg.license or licence_of(weights)
    base = cfg.base_model or told.get("base_model") or (cfg.adapter_base if cfg.adapter == "keep" else None)
    for file in licence_files(weights) if weights != folder else []:
        shutil.copyfile(file, folder / file.name)
    write_notice(folder, licence)
    found = read_sources([Path(path) for path in cfg.reports])
    tables = [text_table(found.rows)] if found.rows else []
    if found.harness:
        lines = [["task", *found.harness]]
        for label, scores in scores_by_task(found.harness).items():
            lines.append([label, *(f"{100 * scores[m]['macro']:.1f}" if m in scores else "–" for m in found.harness)])
        tables.append(markdown_table(lines))
    card, unknown = model_card(cfg, stages, licence, base, "\n\n".join(tables), gate)
    (folder / CARD).write_text(card, encoding="utf-8")
    return unknown


@parse(ExportConfig, check)
def main(cfg: DictConfig) -> int:
    """Exports a run as a Hugging Face directory."""
    if os.environ.get("RANK", "0") != "0":
        return 0
    run, folder, unfinished = Path(cfg.run), Path(cfg.output_dir), Path(f"{Path(cfg.output_dir)}.tmp")
    if not (cfg.hub and cfg.hub.only):
        checkpoint = chosen_checkpoint(run, cfg.checkpoint)
        source = find_checkpoint(checkpoint, run, cfg.tokenizer)
        trained = cast(DictConfig, source.trained)
        refuse_impossible(cfg, trained)
        state = read_state(checkpoint)
        check_files(checkpoint)
        files.check_base(trained, state)
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        written, gate = write_files(cfg, trained, checkpoint, source.architecture, unfinished)
        stages = [*lineage_of(trained.weights), stage_of(run, trained, state, cfg.data_licenses)]
        unknown = write_card(cfg, trained, stages, unfinished, gate)
        inputs = {"checkpoint": checkpoint / "state.json"}
        inputs |= {"weights": Path(trained.weights)} if trained.weights else {}
        facts = {"kind": {"merge": "model", "keep": "adapter"}[cfg.adapter], "run": str(run), "step": state["step"]}
        write_manifest(unfinished, inputs, **facts, ledger=state["ledger"], gate=gate, stages=stages)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
        print(f"{folder}: {written} of {checkpoint.name}, read back bit for bit")
        print(f"{folder}: {gate}")
        for one in unknown:
            print(f"{folder}/{CARD}: {one}")
    if cfg.hub:
        print(f"{folder}: pushed to {push(folder, cfg.hub.repo, cfg.hub.private)}")
    return 0


if __name__ == "__main__":
    main()
