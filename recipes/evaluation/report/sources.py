"""Reads what a report is about: scores, sweeps, training runs, and the manifests of whatever was made."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from configs.loader import UserError
from data_prep.lineage import MANIFEST

METRICS = "metrics.jsonl"
EVALUATIONS = "evaluations.jsonl"


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
    evaluations: list[dict[str, Any]]
    """Of the checkpoints that `recipes/evaluate_run.py` scored: a row each, with its step."""
    retention: dict[str, Any]

    @property
    def ranks(self) -> int | None:
        """Processes of the run, as its rates tell."""
        row = self.steps[-1] if self.steps else {}
        each = row.get("speed/tokens_per_second_per_rank")
        return round(row["speed/tokens_per_second"] / each) if each else None


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
    """Its answers, and those of `recipes/chat.py`'s comparisons."""
    settings: dict[str, Any] = field(default_factory=dict)
    examples: dict[str, int] = field(default_factory=dict)
    """Score -> answers or questions behind it, for its confidence interval."""
    harness: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Of `recipes/harness.py`: model -> scores."""
    retention: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What was compared -> its retention table: runs whose checkpoints were scored, and the models of a report."""
    sweeps: list[dict[str, Any]] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    artifacts: list[Artifact] = field(default_factory=list)


def read_sources(paths: list[Path]) -> Sources:
    """Reads files and folders of any kind.

    Args:
        paths: report.json, comparison.json, sweep.json, harness.json, a manifest; or a folder: a training run, or one
            with a manifest.

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
            manifest, norms = read_json(path / MANIFEST), _read_if_there(path / "norms.json")
            found.artifacts.append(Artifact(str(path), path, manifest, norms))
        else:
            raise ReportError(f"{path} holds neither {METRICS} nor {MANIFEST}; give a run's or an artifact's folder")
    _name(found)
    found.retention |= {run.name: run.retention for run in found.runs if run.retention}
    return found


def _name(found: Sources) -> None:
    """Names runs and artifacts so that a phone has room for it."""
    names = iter(short_names([one.folder for one in found.artifacts] + [run.folder for run in found.runs]))
    found.artifacts = [replace(one, name=next(names)) for one in found.artifacts]
    found.runs = [replace(one, name=next(names)) for one in found.runs]


def short_names(paths: Sequence[Path]) -> list[str]:
    """Returns of every path the fewest last parts that no other path ends with."""
    names = []
    for path in (one.absolute() for one in paths):
        others = [other.absolute() for other in paths if other.absolute() != path]
        lengths = range(1, len(path.parts))
        endings = (path.parts[-n:] for n in lengths if all(path.parts[-n:] != other.parts[-n:] for other in others))
        names.append("/".join(next(endings, path.parts)))
    return names


def _add_file(found: Sources, path: Path) -> None:
    content = read_json(path)
    if path.name.endswith(MANIFEST):
        name = str(path).removesuffix(f".{MANIFEST}")
        found.artifacts.append(Artifact(name, Path(name), content, {}))
    elif "scored" in content:
        found.sweeps.append(content)
    elif "harness" in content:
        found.harness |= content["harness"]
    elif any("messages" in row for row in content.get("rows", [])):
        found.generations += [_generation(row) for row in content["rows"]]
    elif "rows" in content:
        found.rows += content["rows"]
        found.generations += content.get("generations", [])
        found.settings |= content.get("settings", {})
        found.examples |= content.get("examples", {})
        found.retention |= {path.name: content["retention"]} if content.get("retention") else {}
    else:
        raise ReportError(
            f"{path} is no report.json, comparison.json, sweep.json, harness.json or manifest; give one of them"
        )


def _generation(row: dict[str, Any]) -> dict[str, Any]:
    """Returns a row of `recipes/chat.py`'s comparison as a report has its generations, notes beside the answers."""
    turns = row["messages"] if len(row["messages"]) > 1 else []
    prompt = "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns) or row["messages"][0]["content"]
    notes = {
        model: f"{one['tokens']} tokens" + (", cut off" if one["reason"] == "length" else "")
        for model, one in row["answers"].items()
    }
    return {"prompt": prompt, "answers": {model: one["text"] for model, one in row["answers"].items()}, "notes": notes}


def read_run(folder: Path) -> Run:
    """Reads a run folder."""
    rows = read_rows(folder / METRICS)
    config = OmegaConf.load(folder / "config.yaml") if (folder / "config.yaml").is_file() else OmegaConf.create()
    command = folder / "command.txt"
    return Run(
        name=str(folder),
        folder=folder,
        steps=[row for row in rows if "train/loss" in row],
        validations=[row for row in rows if any(key.startswith("validation/") for key in row)],
        command=command.read_text(encoding="utf-8") if command.is_file() else "",
        versions=_read_if_there(folder / "versions.json"),
        mixture=_read_if_there(folder / "mixture.json"),
        weights=config.get("weights") if isinstance(config, DictConfig) else None,
        evaluations=read_rows(folder / EVALUATIONS) if (folder / EVALUATIONS).is_file() else [],
        retention=_read_if_there(folder / "retention.json"),
    )


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Returns the rows of a run's JSON lines that name a step.

    The last line of a running or killed run may be cut short and is then left out.

    Raises:
        ReportError: another line is no JSON object.
    """
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
