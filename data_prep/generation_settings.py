"""What a model directory says of its answers: how they are sampled, and which ids end them."""

import json
from pathlib import Path
from typing import Any

from data_prep.document import CorpusError


def generation_config(folder: Path) -> dict[str, Any]:
    """Returns a model directory's generation_config.json, empty without one.

    Raises:
        CorpusError: it holds no JSON object.
    """
    return _settings(folder / "generation_config.json")


def end_ids(folder: Path) -> list[int]:
    """Returns the ids that end an answer: those of generation_config.json, then what config.json adds.

    Of a model of several, such as LLaVA, that is what its language model's part of config.json adds too. A directory of
    tokenizer files alone has none.

    Raises:
        CorpusError: a file holds no JSON object.
    """
    config, found = _settings(folder / "config.json"), list[int]()
    language_model = config.get("text_config")
    for settings in (generation_config(folder), config, language_model):
        listed = settings.get("eos_token_id") if isinstance(settings, dict) else None
        found += listed if isinstance(listed, list) else [] if listed is None else [listed]
    return list(dict.fromkeys(found))


def _settings(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise CorpusError(f"{file} is no JSON ({error}); a JSON object is expected; mend or remove it") from None
    if not isinstance(found, dict):
        raise CorpusError(f"{file} holds no JSON object; settings by name are expected; mend or remove it")
    return found
