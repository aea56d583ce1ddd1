"""Every command of the READMEs, run as it stands there, on models, corpora and numbers that are small.

The commands run in a copy of the repository whose configurations have small sizes (tests/recipes/scaled.py) and in
whose `checkpoints` and `out/demo` lie tiny models. tests/readme_runs.py says what a command needs beyond that, and what
must come of it. A command that stands in no entry there, or an entry that stands in no README, fails.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from datasets import Dataset

from data_prep.document import read_jsonl
from tests.llama3_1 import downloaded
from tests.readme import DOCUMENTS, commands, read
from tests.readme_runs import NOT_RUN, RUNS, Run
from tests.recipes.scaled import ANSWER, resized, served_dumps, small_command, write_checkpoints
from tests.support import ROOT, tiny_tokenizer
from tests.unit.data_prep.dialogue.loopback import serving

DATE = "20240520"
PREPARED = [
    *(
        f"python -m data_prep clean --min-chars 80 --dump out/demo/sample/{lang}wiki-{part}-pages-articles-multistream."
        f"xml.bz2 --out out/demo/documents/{folder}{lang}"
        for lang in ("ko", "en")
        for part, folder in (("sample", ""), ("heldout", "heldout-"))
    ),
    *(
        f"python -m data_prep tokens --documents out/demo/documents/{lang} --tokenizer out/demo/models/base "
        f"--out out/demo/tokens/{lang}"
        for lang in ("ko", "en")
    ),
    "python -m data_prep augment --pairs out/demo/sample/pairs.jsonl --out dialogues.jsonl",
    "python -m recipes.cpt --config configs/cpt/demo_ko.yaml device=cpu",
    "sed -i -n 1~7p out/demo/sample/prompts.jsonl out/demo/sample/questions.jsonl",
    "cp out/demo/dumps/kowiki/20240520/*.bz2 dump.bz2",
    "cp dump.bz2 kowiki.xml.bz2",
    "mkdir -p dumps && cp dump.bz2 dumps/kowiki-20220901-pages-articles-multistream.xml.bz2",
    "cp out/demo/documents/ko/documents-00000.jsonl.zst corpus.jsonl.zst",
]
"""What makes the rest of the world once the tiny models are there."""
RESIZED = ("chat_vector", "cpt", "evaluate", "evaluate_run", "models", "sft", "sweep")
"""Folders of configs/ whose numbers are made small."""


def shown() -> dict[str, str]:
    """Returns each command of the documents with the first that shows it."""
    found: dict[str, str] = {}
    for document in DOCUMENTS:
        for command in commands(read(document)):
            found.setdefault(command, document)
    return found


def test_every_command_is_run_or_said_why_not() -> None:
    tried = [command for group in RUNS.values() for command in group]
    known, found = {*tried, *NOT_RUN}, shown()
    assert len(known) == len(tried) + len(NOT_RUN)
    unknown = [f"{found[c]} shows `{c}`; add it to RUNS or NOT_RUN" for c in found.keys() - known]
    assert not unknown, "\n".join(unknown)
    idle = [f"no README shows `{c}`; remove its entry" for c in known - found.keys()]
    assert not idle, "\n".join(idle)
    for path in re.findall(r"tests/[\w/.]*\w", " ".join(NOT_RUN.values())):
        assert (ROOT / path).exists(), path


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """The repository with small numbers in its configurations, tiny checkpoints, the demo's data; and addresses."""
    folder = tmp_path_factory.mktemp("readme") / "kotune"
    for part in ("configs", "data_prep", "recipes", "slurm"):
        shutil.copytree(ROOT / part, folder / part)
    for file in [file for part in RESIZED for file in (folder / "configs" / part).rglob("*.yaml")]:
        content = resized(yaml.safe_load(file.read_text(encoding="utf-8")))
        file.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    write_models(folder)
    with served_dumps(folder / "out/demo", DATE) as mirror, serving() as server:
        corpus = folder / "configs/pipelines/kowiki_corpus.yaml"
        corpus.write_text(re.sub(r"(data_prep download)", rf"\1 --mirror {mirror}", corpus.read_text(encoding="utf-8")))
        addresses = {"MIRROR": mirror, "ENDPOINT": server.url}
        for line in PREPARED:
            result = shell(line, folder, addresses)
            assert result.returncode == 0, f"{line}\n{result.stdout}"
        texts = [row["text"] for row in read_jsonl(folder / "corpus.jsonl.zst")]
        (folder / "folder/of/parquet").mkdir(parents=True)
        Dataset.from_dict({"content": texts}).to_parquet(folder / "folder/of/parquet/corpus.parquet")
        yield folder, addresses


def write_models(folder: Path) -> None:
    """Writes the checkpoints and the demo's models, each of the tiny shape of the small configurations."""
    write_checkpoints(folder)
    checkpoints, models = folder / "checkpoints", folder / "out/demo/models"
    shutil.copytree(checkpoints / "Meta-Llama-3-8B", checkpoints / "My-Llama")
    tiny_tokenizer(checkpoints / "Llama-2-7b-hf")
    downloaded(checkpoints / "Wide-Llama", ANSWER, max_position_embeddings=8192, intermediate_size=192)
    for name in ("base", "korean_base", "instruct", "chat_vector", "sft"):
        kind = "" if name in ("base", "korean_base") else "-Instruct"
        model = shutil.copytree(checkpoints / f"Meta-Llama-3-8B{kind}", models / name)
        (model / "original/tokenizer.model").rename(model / "tokenizer.model")


def shell(line: str, folder: Path, addresses: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs a line as a user does, in the folder."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    settings = {**os.environ, **addresses, "PATH": path, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=settings, text=True, timeout=600, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def small(command: str, run: Run, mirror: str) -> str:
    """Returns the command as it is run: two ranks, the words that its entry changes, and those behind it."""
    for old, new in run.instead.items():
        command, count = re.subn(rf"(?<![\w./-]){re.escape(old)}(?![\w/])", new, command)
        assert count, f"`{command}` has no {old}; mend its entry"
    return f"{small_command(command, mirror)} {run.add}".rstrip()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("group", RUNS)
def test_the_commands_do_what_the_readme_says(group: str, world: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    addresses = world[1]
    folder = shutil.copytree(world[0], tmp_path / "kotune")
    variables = []
    for command, run in RUNS[group].items():
        line = small(command, run, addresses["MIRROR"])
        if re.match(r"\w+=", line):
            variables.append(line)
            continue
        made = folder / run.makes
        assert not (run.makes and made.exists()), f"{run.makes} is there before `{command}`"
        result = shell("\n".join([*variables, line]), folder, addresses)
        what = f"`{command}`, run as `{line}`, exited {result.returncode}\n{result.stdout[-6000:]}"
        assert result.returncode == 0, what
        assert run.says in result.stdout, what
        assert made.exists(), f"{run.makes} is missing: {what}"
