"""The key `data` of a run: which sources it trains on, and their shares from step to step."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf

from configs.loader import ConfigError, load
from data_prep.dialogue.chat_rows import COMMIT, ChatSource
from data_prep.dialogue.formats import FORMS
from recipes.training.data.order import Stage
from recipes.training.data.stages import StageConfig, resolve_stages
from recipes.training.typed import read_typed

NAME = re.compile(r"[\w.-]+")
KINDS = ("shards", "chat", "hub")


@dataclass
class SourceConfig:
    """One source; exactly one of `shards`, `chat` and `hub`."""

    shards: str | None = None
    """Folder of token shards."""
    chat: str | None = None
    """File of chat examples: JSON lines (also .zst, .gz), a JSON array, Parquet, CSV or TSV."""
    hub: str | None = None
    """Chat examples that `datasets` loads: OWNER/NAME on the Hugging Face Hub or in its cache, or a folder."""
    subset: str | None = None
    """Configuration of a dataset of `hub`."""
    split: str | None = None
    """Split of a dataset of `hub`; needed where it has several."""
    revision: str | None = None
    """Commit of a dataset of `hub`, 40 hexadecimal digits; null: the newest, or without network the cached one."""
    format: str | None = None
    """Of chat examples: messages, sharegpt, alpaca or prompt; null: by the fields of each row."""
    fields: dict[str, str] | None = None
    """Names that the format expects -> columns of chat examples that have them."""
    weight: float = 1.0
    """Any scale; for stages that state no weights."""
    lang: str | None = None
    """`en`, `ko`, ...: english_replay needs it."""
    max_epochs: float | None = None
    """Most passes over the source that the whole run may make; null: any number."""


@dataclass
class MixtureConfig:
    """Content of a mixture file, or of `data` written as a mapping."""

    sources: Any = MISSING
    """name: SourceConfig, in the order that the shares are told in."""
    stages: list[Any] = field(default_factory=lambda: [{}])
    """Each a StageConfig."""
    english_replay: float | None = None
    """Share of English sequences, 0 to 1, split by weight; the other sources share the rest by theirs."""


@dataclass(frozen=True)
class SourceEntry:
    """One source of a run; `kind` is `shards` or `chat`, and `chat` then where the examples are."""

    name: str
    kind: str
    path: Path
    weight: float
    lang: str | None
    max_epochs: float | None
    chat: ChatSource | None = None


@dataclass(frozen=True)
class Mixture:
    """Sources, and the shares they have in each stage, in the same order."""

    sources: tuple[SourceEntry, ...]
    stages: tuple[Stage, ...]

    def describe(self) -> str:
        """Returns the shares by stage, without the names: moving a folder makes no other mixture."""
        told = []
        for stage in self.stages:
            ramp = f", reached by step {stage.from_step + stage.ramp_steps}" if stage.ramp_steps else ""
            told.append(f"{' + '.join(str(float(s)) for s in stage.shares)} from step {stage.from_step}{ramp}")
        return "; ".join(told)


def read_mixture(data: Any, global_batch_tokens: int) -> Mixture:
    """Reads the key `data`.

    Args:
        data: a path, a list of paths or SourceConfig, a mixture file (*.yaml), or a MixtureConfig as a mapping.
        global_batch_tokens: of a step; turns `from_tokens` into steps.

    Raises:
        ConfigError: unknown keys, wrong types or weights, missing paths, stages out of order; all at once.
    """
    problems: list[str] = []
    config = _read_config(data, problems)
    labelled = _label_sources(config.sources, problems)
    read = [_read_source(name, where, value, problems) for name, where, value in labelled]
    if not read and not problems:
        problems.append("data: is empty; give at least one folder of token shards or chat-example file")
    typed = [read_typed(StageConfig, stage, f"stages[{n}]", problems) for n, stage in enumerate(config.stages)]
    entries, stages = tuple(e for e in read if e), [s for s in typed if s]
    resolved: tuple[Stage, ...] = ()
    if entries and stages and len(entries) == len(read) and len(stages) == len(typed):
        names = {e.name: (e.weight, e.lang) for e in entries}
        resolved = resolve_stages(stages, names, config.english_replay, max(1, global_batch_tokens), problems)
    if problems:
        raise ConfigError(data if isinstance(data, str) and data.endswith((".yaml", ".yml")) else "data", problems)
    return Mixture(entries, resolved)


def _read_config(data: Any, problems: list[str]) -> MixtureConfig:
    """Returns the mixture that any form of `data` stands for; the sources as they were written."""
    if isinstance(data, DictConfig | ListConfig):
        data = OmegaConf.to_container(data, resolve=True)
    if isinstance(data, str) and Path(data).suffix in (".yaml", ".yml"):
        data = OmegaConf.to_container(load(MixtureConfig, data), resolve=True)
    if isinstance(data, Mapping):
        config = read_typed(MixtureConfig, data, "data", problems)
        if config is None or not config.stages:
            problems += ["stages: is empty; give at least one, or leave the key out"] if config else []
            return MixtureConfig(sources={})
        return config
    return MixtureConfig(sources=[data] if isinstance(data, str) else data)


def _label_sources(sources: Any, problems: list[str]) -> list[tuple[str, str, Any]]:
    """Returns (name, key in the configuration, value) of every source, naming those of a list by their paths."""
    if isinstance(sources, Mapping):
        for name in [n for n in sources if not NAME.fullmatch(str(n))]:
            problems.append(f"sources.{name}: the name {name!r} is no plain word; use letters, digits and . _ -")
        return [(str(name), f"sources.{name}", value) for name, value in sources.items()]
    if not isinstance(sources, list):
        problems.append(
            f"data: is {sources!r}; a path, a list of paths or of {{shards | chat | hub: path, weight: share}}, a "
            "mixture file (*.yaml) or a mapping with `sources` is expected; write one of these"
        )
        return []
    labelled: list[tuple[str, str, Any]] = []
    for number, value in enumerate(sources):
        if isinstance(value, str):
            value = {"chat" if Path(value).is_file() else "shards": value}
        path = next(filter(None, map(value.get, KINDS)), None) if isinstance(value, Mapping) else None
        name = re.sub(r"[^\w.-]", "_", Path(str(path)).stem) or f"source{number}"
        taken = any(name == other for other, _, _ in labelled)
        labelled.append((f"{name}-{number}" if taken else name, f"data[{number}]", value))
    return labelled


def _read_source(name: str, where: str, value: Any, problems: list[str]) -> SourceEntry | None:
    config = read_typed(SourceConfig, value, where, problems)
    if config is None:
        return None
    kinds = [kind for kind in KINDS if getattr(config, kind) is not None]
    if len(kinds) != 1:
        problems.append(
            f"{where}: has {' and '.join(kinds) or 'none of ' + ', '.join(KINDS)}; give exactly one of them"
        )
        return None
    path = Path(getattr(config, kinds[0]))
    if kinds[0] != "hub" and not path.exists():
        problems.append(f"{where}: {path} does not exist; give token shards or a chat-example file")
    elif kinds[0] != "hub" and path.is_file() is not (kinds[0] == "chat"):
        found, other = ("file", "chat") if path.is_file() else ("folder", "shards (or as hub, if saved by datasets)")
        problems.append(f"{where}: {kinds[0]} names the {found} {path}; a {found} is read as {other}: use that key")
    if config.max_epochs is not None and not config.max_epochs > 0:
        problems.append(f"{where}.max_epochs: {config.max_epochs} is not above 0; set it above, or leave it out")
    chat = _chat_source(config, kinds[0], where, problems)
    kind = "shards" if kinds[0] == "shards" else "chat"
    return SourceEntry(name, kind, path, config.weight, config.lang, config.max_epochs, chat)


def _chat_source(config: SourceConfig, kind: str, where: str, problems: list[str]) -> ChatSource | None:
    """Returns where chat examples are, None for token shards; adds keys that the kind of source does not have."""
    foreign = [] if kind == "hub" else ["subset", "split", "revision"]
    foreign += ["format", "fields"] if kind == "shards" else []
    if told := [name for name in foreign if getattr(config, name) is not None]:
        problems.append(f"{where}: {', '.join(told)} beside {kind}; {kind} has no such key; remove it")
    if config.format is not None and config.format not in FORMS:
        problems.append(f"{where}.format: {config.format!r} is not known; one of {', '.join(FORMS)}")
    if config.revision is not None and not COMMIT.fullmatch(config.revision):
        problems.append(
            f"{where}.revision: {config.revision!r} is no commit; tags and branches move; give 40 hexadecimal digits"
        )
    if kind == "shards":
        return None
    fields = tuple((config.fields or {}).items())
    told_place = (config.hub or config.chat or "", kind == "hub", config.subset, config.split, config.revision)
    return ChatSource(*told_place, config.format, fields)
