"""What a merged model needs to chat at once: tokenizer, chat template, end tokens, generation settings."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from data_prep.generation_settings import end_ids, generation_config
from data_prep.hf_directory import ModelDirectory
from data_prep.lineage import write_json
from data_prep.model_card import licence_files
from recipes.merging.errors import MergeError
from recipes.merging.plan import MergePlan
from recipes.merging.vocabulary import tokenizer_json, tokens_of

# of a vision model; what reads them is the target's
PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
)
TOKEN_ID = re.compile(r"(bos|pad|decoder_start)_token_id")


def chat_settings(plan: MergePlan) -> tuple[ModelDirectory, list[int], dict[str, Any]]:
    """Returns whose tokenizer files the result has, the ids that end generation, and generation_config.json.

    With one vocabulary the instruct model's tokenizer files are taken as they are. Where vocabularies differ, the
    tokenizer must be the target's, and the instruct model's tokens are looked up in it by their strings.

    Raises:
        MergeError: there is no end token, or the target's tokenizer lacks a token of the instruct model's chats.
    """
    target, plus = plan.target.model, plan.directories["plus"]
    speaker = target if plan.settings.chat_from == "target" else plus
    ends, generation = end_token_ids(speaker), generation_settings(speaker)
    if plan.settings.vocabulary == "same" or speaker is target:
        return speaker, ends, {**generation, "eos_token_id": ends}
    ids = _matching_ids(plus, target)
    _refuse_lost_tokens(plus, target, ends, ids)
    for key in [key for key in generation if TOKEN_ID.fullmatch(key)]:
        if (found := ids.get(generation[key])) is None:
            del generation[key]  # padding by a token the target lacks
        else:
            generation[key] = found
    return target, [ids[end] for end in ends], {**generation, "eos_token_id": [ids[end] for end in ends]}


def write_chat_files(plan: MergePlan, folder: Path) -> None:
    """Writes tokenizer files, chat template, config.json, generation_config.json, processor and licence files."""
    owner, ends, generation = chat_settings(plan)
    target, plus = plan.target.model, plan.directories["plus"]
    for name in owner.tokenizer_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(owner.path / name, folder / name)
    if owner is not plus and plan.settings.chat_from == "plus" and (template := chat_template(plus.path)):
        _set_template(folder, template)
    for extra in PROCESSOR_FILES:
        if (target.path / extra).is_file():
            shutil.copyfile(target.path / extra, folder / extra)
    for model in reversed(plan.directories.values()):  # the target's come last and stay
        for file in licence_files(model.path):
            shutil.copyfile(file, folder / file.name)
    config = {**target.config, "eos_token_id": ends}
    if isinstance(text_config := target.config.get("text_config"), dict):
        config = {**target.config, "text_config": {**text_config, "eos_token_id": ends}}
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", generation)


def end_token_ids(model: ModelDirectory) -> list[int]:
    """Returns the ids that end generation.

    Raises:
        MergeError: no file states one, so the merged model would never stop.
    """
    found = end_ids(model.path)
    if not found:
        raise MergeError(
            f"{model.path} has no eos_token_id in config.json or generation_config.json; one is needed to end an "
            "answer; add it there"
        )
    return found


def has_chat_template(folder: Path) -> bool:
    """Whether the directory carries a chat template, as a file or in `tokenizer_config.json`."""
    return chat_template(folder) is not None


def chat_template(folder: Path) -> Any:
    """Returns the directory's template as it is stored, text or several named ones; None without one."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    settings = folder / "tokenizer_config.json"
    return json.loads(settings.read_text(encoding="utf-8")).get("chat_template") if settings.is_file() else None


def generation_settings(model: ModelDirectory) -> dict[str, Any]:
    """Returns generation_config.json, or what config.json has of it."""
    ids = {key: model.config.get(key) for key in ("bos_token_id", "eos_token_id")}
    return generation_config(model.path) or {key: value for key, value in ids.items() if value is not None}


def _matching_ids(plus: ModelDirectory, target: ModelDirectory) -> dict[int, int]:
    """Returns the target's id for each of plus's whose token string both have."""
    theirs = {token: id_ for id_, token in enumerate(tokens_of(target.path) or []) if token is not None}
    return {id_: theirs[t] for id_, t in enumerate(tokens_of(plus.path) or []) if t is not None and t in theirs}


def _refuse_lost_tokens(plus: ModelDirectory, target: ModelDirectory, ends: list[int], ids: dict[int, int]) -> None:
    added = {token["id"]: token["content"] for token in (tokenizer_json(plus.path) or {}).get("added_tokens") or []}
    text = json.dumps(chat_template(plus.path) or "", ensure_ascii=False)
    needed = {end: added.get(end, f"token {end}") for end in ends}
    needed |= {id_: token for id_, token in added.items() if token in text}
    if lost := [token for id_, token in sorted(needed.items()) if id_ not in ids]:
        raise MergeError(
            f"chats of {plus.path} need {', '.join(lost)}, which the tokenizer of {target.path} lacks; every token of "
            "the template is needed; add them to the target, or set chat_from=target"
        )


def _set_template(folder: Path, template: Any) -> None:
    """Makes `template` the only one of the directory."""
    settings = folder / "tokenizer_config.json"
    content = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    if isinstance(template, str):
        content.pop("chat_template", None)
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    else:
        content["chat_template"] = template
    if settings.is_file() or content:
        write_json(settings, content)
