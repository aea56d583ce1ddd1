"""Reads what a report is about: scores, sweeps, training runs, and the manifests of whatever was made."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from configs.loader import UserError
from data_prep.lineage import MANIFEST

METRICS = "metrics.jsonl"


class ReportError(UserError):
    """A report cannot be made of a file; the message names it."""


@dataclass(frozen=True)
class Run:
    """A training run: the rows of its metrics that have a loss, those that score held-out text, and how it began."""

    name: str
    folder: Path
    steps: list[dict[str, Any]]
    validations: list[dict[str, Any]]
    command: str
    versions: dict[str, Any]
    mixture: dict[str, Any]
    weights: str | None
    """What it started from."""


@dataclass(frozen=True)
class Artifact:
    """A folder or file with a manifest: documents, token shards, chat examples or a model."""

    name: str
    folder: Path
    manifest: dict[str, Any]
    norms: dict[str, Any]
    """Of a chat vector, empty otherwise."""


@dataclass
class Sources:
    """All that a report shows."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    """Of `recipes/evaluate.py`: a row a model."""
    generations: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    examples: dict[str, int] = field(default_factory=dict)
    """Score -> answers or questions behind it, for its confidence interval."""
    harness: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Of `recipes/harness.py`: model -> scores."""
    sweeps: list[dict[str, Any]] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    artifacts: list[Artifact] = field(default_factory=list)


def read_sources(paths: list[Path]) -> Sources:
    """Reads files and folders of any kind.

    Args:
        paths: report.json, sweep.json, harness.json, a manifest; or a folder: a training run, or one with a manifest.

    Raises:
        ReportError: a file is damaged or missing, or is of no such kind.
    """
    found = Sources()
    for path in paths:
        if not path.exists():
            raise ReportError(f"{path} does not exist; give a report.json, a run folder or a data folder")
        if path.is_file():
            _add_file(found, path)
        elif (path / METRICS).is_file():
            found.runs.append(read_run(path))
        elif (path / MANIFEST).is_file():
            norms = read_json(path / "norms.json") if (path / "norms.json").is_file() else {}
            found.artifacts.append(Artifact(str(path), path, read_json(path / MANIFEST), norms))
        else:
            raise ReportError(f"{path} holds neither {METRICS} nor {MANIFEST}; give a run's or an artifact's folder")
    return found


def _add_file(found: Sources, path: Path) -> None:
    content = read_json(path)
    if path.name.endswith(MANIFEST):
        name = str(path).removesuffix(f".{MANIFEST}")
        found.artifacts.append(Artifact(name, Path(name), content, {}))
    elif "scored" in content:
        found.sweeps.append(content)
    elif "harness" in content:
        found.harness |= content["harness"]
    elif "rows" in content:
        found.rows += content["rows"]
        found.generations += content.get("generations", [])
        found.settings |= content.get("settings", {})
        found.examples |= content.get("examples", {})
    else:
        raise ReportError(f"{path} is no report.json, sweep.json, harness.json or manifest; give one of them")


def read_run(folder: Path) -> Run:
    """Reads a run folder."""
    rows = read_metrics(folder)
    config = OmegaConf.load(folder / "config.yaml") if (folder / "config.yaml").is_file() else OmegaConf.create()
    command = folder / "command.txt"
    return Run(
        name=str(folder),
        folder=folder,
        steps=[row for row in rows if "train/loss" in row],
        validations=[row for row in rows if any(key.startswith("validation/") for key in row)],
        command=command.read_text(encoding="utf-8") if command.is_file() else "",
        versions=read_json(folder / "versions.json") if (folder / "versions.json").is_file() else {},
        mixture=read_json(folder / "mixture.json") if (folder / "mixture.json").is_file() else {},
        weights=config.get("weights") if isinstance(config, DictConfig) else None,
    )


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Returns the rows of `metrics.jsonl` that name a step.

    The last line of a running or killed run may be cut short and is then left out.

    Raises:
        ReportError: another line is no JSON object.
    """
    file = folder / METRICS
    lines = file.read_text(encoding="utf-8").splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(dict(json.loads(line)))
        except (ValueError, TypeError) as error:
            if number < len(lines):
                raise ReportError(f"{file} line {number} is no JSON object: {error}; mend or remove it") from None
    return [row for row in rows if "step" in row]


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object of a file.

    Raises:
        ReportError: it holds none.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ReportError(f"{path} holds no JSON object: {error}; mend or remove it") from None
