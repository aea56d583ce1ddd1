"""The model card of an export, README.md: header for the Hub, training, data, licence, use; all from facts on disk."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from data_prep.lineage import MANIFEST
from data_prep.model_card import built_with, data_licence, header, licence_text, name_problem, stages_of

KINDS = {"cpt": "Continued pretraining", "sft": "Instruction tuning", "merge": "Chat vector"}
SHOWN = [
    "seq_len",
    "global_batch_tokens",
    "steps",
    "schedule",
    "warmup_steps",
    "decay_steps",
    "min_lr_ratio",
    "precision",
]
SHOWN += ["clip_grad_norm", "z_loss", "embedding_lr", "train_on", "seed"]
LANGUAGES = ("ko", "en")


def stage_of(run: Path, trained: DictConfig, state: Mapping[str, Any], licences: Mapping[str, str]) -> dict[str, Any]:
    """Returns what a run did to a model, as JSON values: settings, and the data it read with tokens and licences.

    Args:
        run: its folder.
        trained: its configuration.
        state: of the exported checkpoint.
        licences: source of text -> its licence, as `ExportConfig.data_licenses`.
    """
    mixture = _json(run / "mixture.json")
    read = state.get("sources") or {}
    optimizer = OmegaConf.to_container(trained.optimizer) if trained.get("optimizer") else {}
    settings = {key: trained[key] for key in SHOWN if trained.get(key) is not None}
    settings |= {f"optimizer.{key}": value for key, value in dict(optimizer).items()}  # type: ignore[arg-type]
    if trained.get("adapter"):
        settings |= {f"adapter.{key}": v for key, v in OmegaConf.to_container(trained.adapter).items()}  # type: ignore
    return {
        "kind": "sft" if trained.get("chat_template") else "cpt",
        "run": str(run),
        "weights": trained.weights,
        "step": state["step"],
        "tokens": (state.get("ledger") or {}).get("tokens"),
        "settings": settings,
        "data": [
            {**_source(name, one, licences), "tokens": (read.get(name) or one).get("tokens")}
            for name, one in (mixture.get("sources") or {}).items()
        ],
    }


def _source(name: str, facts: Mapping[str, Any], licences: Mapping[str, str]) -> dict[str, Any]:
    """Returns a source of a run's mixture with what the manifest beside it tells of its origin."""
    path = Path(str(facts.get("shards") or facts.get("chat") or facts.get("hub") or name))
    manifest = _json(path / MANIFEST) if facts.get("shards") else _json(path.with_name(f"{path.name}.{MANIFEST}"))
    origins = sorted({one["source"] for one in manifest.get("sources") or [] if one.get("source")})
    pairs = (manifest.get("inputs") or {}).get("pairs") or {}
    written_by = _json(Path(pairs["path"]).parent / MANIFEST).get("models") if pairs.get("path") else None
    found = {one: data_licence(one, licences) for one in origins or [name]}
    stated = licences.get(name) or "; ".join(dict.fromkeys(one for one in found.values() if one))
    return {
        "name": name,
        "path": str(path),
        "lang": facts.get("lang"),
        "origins": origins,
        "written_by": written_by,
        "licence": stated if licences.get(name) or all(found.values()) else None,
    }


def model_card(
    cfg: DictConfig, stages: Sequence[Mapping[str, Any]], licence: str | None, base: str | None, results: str, gate: str
) -> tuple[str, list[str]]:
    """Returns README.md, and what it does not say because no file on disk does.

    Args:
        cfg: `ExportConfig`.
        stages: oldest first; the last one is the exported run's.
        licence: the Hub's identifier.
        base: name on the Hub of the model that all began with.
        results: tables of scores in Markdown, empty without.
        gate: what the gate found.
    """
    last, name = stages[-1], model_name(cfg)
    kept = cfg.adapter == "keep"
    tags = ["llama", "korean", *(["lora"] if kept else []), *(["chat-vector"] if _merged(stages) else [])]
    facts = {
        "language": list(LANGUAGES),
        "license": licence,
        "base_model": base,
        "library_name": "peft" if kept else "transformers",
        "pipeline_tag": "text-generation",
        "tags": tags,
    }
    words = built_with(licence)
    parts = [
        header(facts),
        f"# {name}",
        *([words] if words else []),
        _summary(last, base),
        "## How it was made\n\n" + "\n".join(f"{n}. {_stage_line(one)}" for n, one in enumerate(stages, start=1)),
        *([f"## Training data\n\n{table}"] if (table := _data_table(stages)) else []),
        f"## Settings of the last stage\n\n{_settings_table(last)}",
        *([f"## Scores\n\n{results}"] if results else []),
        f"## Use\n\n{_use(cfg, last['kind'] == 'sft')}",
        f"## Checked on export\n\n{gate}.",
        f"## Limits\n\n{_limits(last, bool(results))}",
        *([f"## Licence\n\n{licence_text(licence)}"] if licence else []),
        "Made with kotune; `manifest.json` holds the hashes of all files and of what they were made from.",
    ]
    return "\n\n".join(parts) + "\n", _unknown(cfg, stages, licence, base, results)


def model_name(cfg: DictConfig) -> str:
    """Returns the name on the card."""
    return str(cfg.name or (cfg.hub.repo.rpartition("/")[2] if cfg.hub else Path(cfg.output_dir).name))


def lineage_of(weights: str | None) -> list[dict[str, Any]]:
    """Returns the stages of the weights that a run started from, oldest first."""
    return stages_of(Path(weights)) if weights else []


def _unknown(
    cfg: DictConfig, stages: Sequence[Mapping[str, Any]], licence: str | None, base: str | None, results: str
) -> list[str]:
    sources = {one["name"] for stage in stages for one in stage.get("data", []) if not one["licence"]}
    told = [
        None if licence else "the licence is not known; set license=...",
        None if base else "the model that all began with is not known; set base_model=OWNER/NAME",
        *(f"the licence of the data {one} is not known; set data_licenses.{one}=..." for one in sorted(sources)),
        None if results else "no scores; set reports=[report.json, harness.json]",
        name_problem(licence, model_name(cfg)),
    ]
    return [one for one in told if one]


def _merged(stages: Sequence[Mapping[str, Any]]) -> bool:
    return any(stage["kind"] == "merge" for stage in stages)


def _summary(last: Mapping[str, Any], base: str | None) -> str:
    what = "A chat model" if last["kind"] == "sft" else "A base model, which continues text"
    origin = f", made from [{base}](https://huggingface.co/{base})" if base else ""
    return f"{what} for Korean and English{origin}."


def _stage_line(stage: Mapping[str, Any]) -> str:
    if stage["kind"] == "merge":
        models = ", ".join(f"{role} `{Path(path).name}`" for role, path in stage["models"].items())
        return f"{KINDS['merge']}: {models}, added without training"
    tokens = f"{stage['tokens']:,} tokens in " if stage.get("tokens") else ""
    start = f" from `{Path(stage['weights']).name}`" if stage.get("weights") else " from random weights"
    return f"{KINDS[stage['kind']]}{start}: {tokens}{stage['step']:,} step{'s' if stage['step'] != 1 else ''}"


def _data_table(stages: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for stage in stages:
        for one in stage.get("data", []):
            tokens = f"{one['tokens']:,}" if one.get("tokens") else "–"
            origins = ", ".join([*one["origins"], *(f"written by {model}" for model in one.get("written_by") or [])])
            cells = [KINDS[stage["kind"]], one["name"], one.get("lang") or "–", tokens, origins or "–"]
            rows.append(f"| {' | '.join([*cells, one['licence'] or '–'])} |")
    head = "| stage | source | language | tokens read | from | licence |\n|---|---|---|---|---|---|\n"
    return head + "\n".join(rows) if rows else ""


def _settings_table(stage: Mapping[str, Any]) -> str:
    rows = [f"| {key} | {value} |" for key, value in stage["settings"].items()]
    return "| key | value |\n|---|---|\n" + "\n".join(rows)


def _use(cfg: DictConfig, chats: bool) -> str:
    place = cfg.hub.repo if cfg.hub else str(cfg.output_dir)
    dtype = "bfloat16" if cfg.dtype == "bf16" else "float32"
    if cfg.adapter == "keep":
        load = (
            "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer\n\n"
            f'tokenizer = AutoTokenizer.from_pretrained("{place}")\n'
            f'model = AutoPeftModelForCausalLM.from_pretrained("{place}")\n'
        )
    else:
        load = (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'tokenizer = AutoTokenizer.from_pretrained("{place}")\n'
            f'model = AutoModelForCausalLM.from_pretrained("{place}", dtype="{dtype}")\n'
        )
    if chats:
        ask = (
            'messages = [{"role": "user", "content": "대한민국의 수도는 어디인가요?"}]\n'
            "inputs = tokenizer.apply_chat_template(\n"
            '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True\n)\n'
        )
    else:
        ask = 'inputs = tokenizer("대한민국의 수도는", return_tensors="pt", return_token_type_ids=False)\n'
    show = "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=128)[0], skip_special_tokens=True))\n"
    serve = "" if cfg.adapter == "keep" else f"\n\nWith vLLM: `vllm serve {place} --dtype {dtype}`"
    return f"```python\n{load}{ask}{show}```{serve}"


def _limits(last: Mapping[str, Any], scored: bool) -> str:
    seq_len = last["settings"].get("seq_len")
    told = [
        "- It may state what is false, and what is harmful: nothing was done for its safety by the stages above.",
        "- It follows no instructions; it continues text." if last["kind"] == "cpt" else None,
        f"- It was trained on sequences of {seq_len:,} tokens; longer ones were not tried." if seq_len else None,
        None if scored else "- No scores are known.",
    ]
    return "\n".join(one for one in told if one)


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
