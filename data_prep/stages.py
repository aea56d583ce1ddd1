"""Which stages of a pipeline have to run: what a stage depends on, and the stamp its run leaves."""

import dataclasses
import itertools
import json
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from configs.loader import ConfigError
from data_prep import lineage

NAME = re.compile(r"\w[\w.-]*")
BASE_IN_CONFIG = re.compile(r"""^base:\s*["']?([^\s"'#]+)""", re.MULTILINE)
MODULE_IN_CONFIG = re.compile(rf"\b(?:{'|'.join(lineage.PACKAGES)})(?:\.\w+)+")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One command of a pipeline; paths are relative to the current folder."""

    name: str
    words: tuple[str, ...]  # the command: program and arguments
    config: Path | None
    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...]


def without_inputs(stage: Stage) -> Stage:
    """Returns the stage as its command, configuration and code make it, whatever it reads."""
    return dataclasses.replace(stage, inputs=())


class Stamps:
    """The stamps `output_dir/.stages/NAME.json`, and the content hashes they are compared with."""

    def __init__(self, output_dir: Path) -> None:
        self.output_dir = output_dir
        self.folder = output_dir / ".stages"
        self._hashes: dict[Path, str] = {}

    def dependencies(self, stage: Stage) -> dict[str, str]:
        """Returns what the outputs of `stage` depend on, as name -> hash.

        Raises:
            ConfigError: an input or the configuration file does not exist.
        """
        configs = _config_files(stage)
        if missing := [path for path in [*stage.inputs, *configs] if not path.exists()]:
            made_by = "an earlier stage makes it, or give another path"
            raise ConfigError(f"stage {stage.name}", [f"input {path} does not exist; {made_by}" for path in missing])
        code = {_code_name(file): lineage.sha256_file(file) for file in _code_files(stage, configs)}
        return {
            "command": lineage.sha256_json(stage.words),
            **{f"config {path}": lineage.sha256_file(path) for path in configs},
            **{f"input {path}": self._hash(path) for path in stage.inputs},
            "code": lineage.sha256_json(code),
        }

    def changes(self, stage: Stage, now: dict[str, str]) -> list[str]:
        """Returns the names of what differs from the run that last wrote the outputs; none without such a run."""
        before = self._read(stage).get("dependencies", now)
        return [name for name in [*now, *(before.keys() - now.keys())] if before.get(name) != now.get(name)]

    def is_done(self, stage: Stage, now: dict[str, str]) -> bool:
        """Whether a run with these dependencies ended and its outputs are as it left them."""
        stamp = self._read(stage)
        if stamp.get("state") != "done" or stamp["dependencies"] != now:
            return False
        return stamp["outputs"] == {str(path): self._hash(path) for path in stage.outputs if path.exists()}

    def remove_outputs(self, stage: Stage) -> tuple[list[Path], list[Path]]:
        """Removes the outputs that lie inside `output_dir`.

        Returns:
            What was removed, and what was kept because it lies elsewhere.
        """
        root = self.output_dir.resolve()
        removed, kept = [], []
        for path in [path for path in stage.outputs if path.exists() or path.is_symlink()]:
            place = path.parent.resolve() / path.name  # a link itself is removed, never what it points to
            if root not in place.parents:
                kept.append(path)
                continue
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)
            else:
                place.unlink()
            removed.append(path)
        self._hashes.clear()
        return removed, kept

    def start(self, stage: Stage, now: dict[str, str]) -> None:
        """Records that a run with these dependencies is under way; a killed run leaves this stamp."""
        self._write(stage, now, state="running")

    def end(self, stage: Stage, now: dict[str, str], seconds: float) -> None:
        """Records a run that ended well, with the hashes of what it wrote."""
        self._hashes.clear()
        outputs = {str(path): self._hash(path) for path in stage.outputs}
        self._write(stage, now, state="done", outputs=outputs, seconds=round(seconds, 3))

    def _write(self, stage: Stage, now: dict[str, str], **facts: Any) -> None:
        head = {"fingerprint": lineage.sha256_json(now), "command": shlex.join(stage.words), "commit": lineage.commit()}
        lineage.write_json(self._file(stage), {**head, **facts, "dependencies": now})

    def _read(self, stage: Stage) -> dict[str, Any]:
        file = self._file(stage)
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def _file(self, stage: Stage) -> Path:
        return self.folder / f"{stage.name}.json"

    def _hash(self, path: Path) -> str:
        if path not in self._hashes:
            self._hashes[path] = lineage.sha256_path(path)
        return self._hashes[path]


def split(command: str) -> list[str]:
    """Returns the words of a command as a shell would split them; none when a quote stays open."""
    try:
        return shlex.split(command)
    except ValueError:
        return []


def problems(output_dir: Path, stages: Sequence[Stage]) -> list[str]:
    """Returns what is wrong with a pipeline before anything runs: names, commands, inputs and outputs."""
    found: list[str] = []
    made = [("the pipeline", output_dir / own) for own in (".stages", ".submissions", "logs")]
    names: set[str] = set()
    for stage in stages:
        if stage.name in names or not NAME.fullmatch(stage.name):
            wrong = "is given to two stages" if stage.name in names else "makes no file name"
            found.append(f"stage {stage.name}: the name {wrong}; use another one of letters, digits and . _ -")
        names.add(stage.name)
        found += [f"stage {stage.name}: {text}" for text in _stage_problems(output_dir, stage, made)]
        made += [(f"stage {stage.name}", path) for path in stage.outputs]
    return found


def _stage_problems(output_dir: Path, stage: Stage, made: Sequence[tuple[str, Path]]) -> Iterator[str]:
    """Yields what is wrong with one stage; `made` holds (maker, path) of everything written before it."""
    if not stage.words:
        yield "the command is empty or leaves a quote open; write the command to launch"
    given = _option(stage.words, "--config")
    if given and (stage.config is None or Path(given) != stage.config):
        yield f"config is {stage.config}, the command reads {given}; write the same path in both"
    for path in [*stage.inputs, *([stage.config] if stage.config else [])]:
        if not path.exists() and not any(overlap(path, other) for _, other in made):
            yield f"{path} does not exist and no earlier stage makes it; give another path"
    for index, path in enumerate(stage.outputs):
        if _inside(output_dir, path):
            yield f"output {path} holds the whole output_dir {output_dir}; name a path inside it"
            continue
        for owner, other in [*made, *(("it", output) for output in stage.outputs[:index])]:
            if overlap(path, other):
                yield f"output {path} and {other}, which {owner} writes, overlap; declare an output once"
        for source in stage.inputs:
            if overlap(path, source):
                yield f"output {path} overlaps the input {source}; a stage may not write what it reads"


def _inside(path: Path, folder: Path) -> bool:
    """Whether `path` is `folder` or lies in it."""
    return path.resolve().is_relative_to(folder.resolve())


def overlap(one: Path, other: Path) -> bool:
    """Whether one path is the other or lies in it."""
    return _inside(one, other) or _inside(other, one)


def _option(words: Sequence[str], name: str) -> str | None:
    """Returns the value of `--name VALUE` or `--name=VALUE`."""
    following = dict(itertools.pairwise(words))
    joined = [word.removeprefix(f"{name}=") for word in words if word.startswith(f"{name}=")]
    return following.get(name) or next(iter(joined), None)


def _config_files(stage: Stage) -> list[Path]:
    """Returns the configuration file and the `base` it names."""
    if stage.config is None or not stage.config.is_file():
        return [stage.config] if stage.config else []
    base = BASE_IN_CONFIG.search(stage.config.read_text(encoding="utf-8"))
    return [stage.config, *([stage.config.parent / base[1]] if base else [])]


def _code_name(file: Path) -> str:
    """Returns a name that a checkout and the copy of it that a job runs from share."""
    return str(file.relative_to(lineage.ROOT) if file.is_relative_to(lineage.ROOT) else file)


def _code_files(stage: Stage, configs: Sequence[Path]) -> list[Path]:
    """Returns the source files of the launched module, of scripts in the command and of configured components."""
    entries: list[str | Path] = [Path(word) for word in stage.words if word.endswith(".py")]
    entries += [module for flag, module in itertools.pairwise(stage.words) if flag == "-m"]
    entries += [name for path in configs for name in MODULE_IN_CONFIG.findall(path.read_text(encoding="utf-8"))]
    return lineage.source_files(entries)
