"""What `cluster` is asked for, and the commands, parts and folders that follow from it."""

import argparse
import os
import re
import shlex
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig

from configs.loader import ConfigError, positive
from data_prep.corpus import clean
from data_prep.corpus.shard import ShardTask
from data_prep.dedup import command as dedup
from data_prep.dedup.run import Dedup
from data_prep.document import CorpusError
from data_prep.lineage import MANIFEST, ROOT, sha256_json, sha256_path
from data_prep.run_folder import RUN, open_run
from data_prep.tokens import encode
from data_prep.tokens.tokenizer import load_tokenizer
from data_prep.wiki.dump import Dump

OURS = {
    "clean": ("--out", "--workers"),
    "dedup": ("--documents", "--out", "--workers"),
    "tokens": ("--documents", "--out"),
}
NAME = re.compile(r"\w[\w.-]*")
COMMANDS = {"clean": clean, "dedup": dedup, "tokens": encode}


@dataclass
class SlurmConfig:
    """What `sbatch` is told; needed with `--executor slurm` only."""

    partition: str | None = None
    """Name of the partition."""
    time: str = "04:00:00"
    """Limit of one array task, HH:MM:SS."""
    cpus_per_task: int = 1
    """Cores of a rank that cleans, sketches or writes."""
    mem_per_cpu_gb: int = 4
    """Memory of such a rank."""
    choose_mem_gb: int = 8
    """Memory of the one task that compares all documents; a million need about 1 GB."""
    single_cpus: int = 16
    """Cores of the one task that puts parts together, and of the one that encodes."""
    venv: str = ".venv/bin/activate"
    """The activate file of the virtual environment, on a disk that all nodes see."""
    qos: str | None = None
    """Quality of service; null for the cluster's default."""
    max_running: int = -1
    """Array tasks at once; -1 for no limit."""
    sbatch: dict[str, str] = field(default_factory=dict)
    """Further options of sbatch, such as account: name."""


@dataclass
class ClusterConfig:
    """A corpus from dumps to token shards."""

    output_dir: str = MISSING
    """Holds documents/NAME, dedup, tokens and logs; on a disk that all nodes see."""
    clean: dict[str, str] = field(default_factory=dict)
    """NAME -> the words after `python -m data_prep clean`, without --out and --workers."""
    documents: list[str] = field(default_factory=list)
    """Complete folders of documents that join before dedup."""
    dedup: str = ""
    """The words after `python -m data_prep dedup`, without --documents, --out and --workers."""
    tokens: str | None = None
    """The words after `python -m data_prep tokens`, without --documents and --out; null ends with documents."""
    max_tasks: int = 200
    """Most ranks of a stage; a rank does every max_tasks-th part."""
    slurm: SlurmConfig = field(default_factory=SlurmConfig)


@dataclass(frozen=True)
class Plan:
    """The commands of the configuration, parsed, and what can be spread over ranks."""

    cleans: tuple[argparse.Namespace, ...]
    parts: tuple[ShardTask, ...]
    """Of all sources. One that can only be read from its start has none: the stage that assembles cleans it whole."""
    dedup: Dedup
    tokens: argparse.Namespace | None
    logs: Path
    max_tasks: int
    num_tasks: int
    """Ranks of the stages that work file by file."""


def make_plan(cfg: DictConfig, name: object) -> Plan:
    """Parses the stages' words, looks at the sources and begins the folders that `clean` will write.

    Raises:
        ConfigError: a stage's words cannot be parsed.
        CorpusError: a dump or folder cannot be read, or an output folder holds another run.
    """
    out = Path(cfg.output_dir).absolute()
    cleans = [parse("clean", words, name, ["--out", str(out / "documents" / key)]) for key, words in cfg.clean.items()]
    folders = [*(args.out for args in cleans), *map(Path, cfg.documents)]
    asked = parse("dedup", cfg.dedup, name, ["--out", str(out / "dedup"), "--documents", *map(str, folders)])
    task, tokens = dedup.request(asked), None
    if cfg.tokens is not None:
        tokens = parse("tokens", cfg.tokens, name, ["--documents", str(out / "dedup"), "--out", str(out / "tokens")])
        load_tokenizer(tokens.tokenizer)  # a wrong one fails here, not in the last stage
    facts: list[Any] = [cfg.max_tasks, cfg.dedup, cfg.tokens]
    num_files = 0
    for folder in map(Path, cfg.documents):
        if not (folder / MANIFEST).is_file():
            raise CorpusError(f"{folder} has no {MANIFEST}; a complete folder is expected; mend documents")
        facts.append([str(folder), sha256_path(folder)])
        num_files += len(list(folder.glob("documents-*.jsonl.zst")))
    parts: list[ShardTask] = []
    for args in cleans:
        plan = clean.plan(args)
        facts.append(plan.settings)
        parts += _begin_clean(plan)
    num_tasks = max(1, min(cfg.max_tasks, len(parts) + num_files))
    # Completion files of another configuration, of other inputs, code or ranks must not make a stage look finished.
    logs = out / "logs" / sha256_json([*facts, len(parts), num_tasks])[:12]
    return Plan(tuple(cleans), tuple(parts), task, tokens, logs, cfg.max_tasks, num_tasks)


def forget_what_is_gone(plan: Plan) -> None:
    """Removes the logs, with datatrove's completion files, if something that a complete stage made is not there.

    No work is lost by it: the stages' own done-markers are beside what they make.
    """
    task = plan.dedup
    begun = task.partial if (task.partial / RUN).is_file() else task.out
    made = {
        "2-assemble": [args.out / MANIFEST for args in plan.cleans] + [begun / RUN],
        "6-finish": [task.out / MANIFEST],
    }
    if plan.tokens:
        made["7-tokens"] = [plan.tokens.out / MANIFEST]
    for stage, files in made.items():
        if (plan.logs / stage / "completions" / "00000").is_file() and not all(file.is_file() for file in files):
            shutil.rmtree(plan.logs)
            return


def _begin_clean(plan: clean.CleanRun) -> list[ShardTask]:
    """Opens the source's output folder and returns its parts; none if it cannot be read in ranges."""
    open_run(plan.out, plan.settings)
    if not (plan.out / MANIFEST).is_file():
        plan.work.mkdir(exist_ok=True)
    parts = plan.source.parts(plan.shard_bytes)
    if isinstance(plan.source, Dump) and {part.path for part in parts} != {file.path for file in plan.source.files}:
        return []
    has_headings = plan.shares is not None
    return [ShardTask(plan.source, part, plan.work, i, plan.rules, has_headings) for i, part in enumerate(parts)]


def parse(command: str, words: str, name: object, more: list[str]) -> argparse.Namespace:
    """Returns the options of a command of `data_prep`, as its own parser reads them.

    Raises:
        ConfigError: the parser refuses them, or they hold an option that this command sets.
    """
    given = shlex.split(words)
    if ours := [option for option in OURS[command] if any(word.split("=")[0] == option for word in given)]:
        raise ConfigError(name, [f"{command}: {ours[0]} is in {words!r}; `cluster` sets it itself; leave it out"])
    parser = _Parser()
    COMMANDS[command].add_parser(parser.add_subparsers())
    try:
        return parser.parse_args([command, *given, *more])
    except argparse.ArgumentError as error:
        raise ConfigError(name, [f"{command}: {words!r}: {error}; see python -m data_prep {command} --help"]) from None


class _Parser(argparse.ArgumentParser):
    """Raises where argparse would end the program."""

    def error(self, message: str) -> Any:
        raise argparse.ArgumentError(None, message)


def config_problems(cfg: DictConfig) -> list[str]:
    """Returns what is wrong with a `ClusterConfig`, whichever executor runs it."""
    problems = positive(cfg, "max_tasks")
    if not cfg.clean and not cfg.documents:
        problems.append("clean: there is no source; at least one is expected; set clean or documents")
    for key, words in cfg.clean.items():
        if not NAME.fullmatch(key):
            problems.append(f"clean.{key}: {key!r} names no folder; letters, digits, - and _ are expected; rename it")
        if "-" in shlex.split(words):
            problems.append(f"clean.{key}: {words!r} reads standard input; a file is expected; name the dump")
    return problems


def slurm_problems(cfg: DictConfig) -> list[str]:
    """Returns what is wrong with it for Slurm."""
    problems = config_problems(cfg)
    slurm, activate = cfg.slurm, Path(cfg.slurm.venv)
    problems += positive(cfg, "slurm.cpus_per_task", "slurm.mem_per_cpu_gb", "slurm.choose_mem_gb", "slurm.single_cpus")
    if slurm.partition is None:
        problems.append("slurm.partition: no value; the name of a partition is expected; see sinfo")
    if not activate.is_file():
        what = "is a folder" if activate.is_dir() else "does not exist"
        problems.append(f"slurm.venv: {activate} {what}; the file bin/activate is expected; give its path")
    elif not (activate.parent / "launch_pickled_pipeline").is_file():
        problems.append(f"slurm.venv: {activate.parent} has no datatrove; the extra `cluster` is expected; install it")
    if "SLURM_ARRAY_TASK_ID" in os.environ:  # datatrove would take this process for one of its own ranks
        problems.append("--executor slurm: this is an array task of Slurm; a login node is expected; start it there")
    if shutil.which("sbatch") is None:
        problems.append("--executor slurm: there is no sbatch on PATH; a login node is expected; start it there")
    for place in (Path(cfg.output_dir).absolute(), Path.cwd(), ROOT):
        if " " in str(place):
            problems.append(f"output_dir: {place} holds a space; the scripts for Slurm take none; move it")
    return problems
