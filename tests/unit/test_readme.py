"""What the READMEs show is right: commands are understood, files exist, messages and figures are those of the code."""

import contextlib
import dataclasses
import functools
import importlib
import itertools
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest

from configs.loader import load
from data_prep import __main__ as data_prep
from tests.readme import DOCUMENTS, FENCE, INLINE, commands, headings, links, read, table_numbers
from tests.support import ROOT, run_here

ALL = [*DOCUMENTS, "recipes/EXPORT.md"]
SHOWN = [(document, command) for document in ALL for command in dict.fromkeys(commands(read(document)))]
CODE = ("configs", "data_prep", "recipes", "slurm")
TRANSLATED = ("README.md", "README.ko.md")

parser = functools.cache(data_prep.make_parser)


def test_there_are_commands() -> None:
    assert Counter(document for document, _ in SHOWN)["README.md"] > 40


@pytest.mark.parametrize(("document", "command"), SHOWN)
def test_a_command_is_understood(document: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(command.split("|")[-1], comments=True)
    for word in words:
        if word.startswith(("configs/", "recipes/", "tests/", "slurm/")):
            assert (ROOT / word).exists(), f"{document}: {command}"
    if words[0] == "make":
        assert re.search(rf"^{words[-1]}:", read("Makefile"), re.MULTILINE), command
    elif words[:3] == ["python", "-m", "data_prep"]:
        with contextlib.suppress(SystemExit):
            assert callable(parser().parse_args(words[3:]).run)
            return
        pytest.fail(f"{document}: {command}\n{capsys.readouterr().err}")
    elif recipe := re.search(r"recipes[./](\w+)(?:\.py)? --config (\S+)", command):
        read_config(recipe[1], recipe[2], words[words.index("--config") + 2 :])


def read_config(recipe: str, config: str, words: list[str]) -> None:
    """Reads a recipe's configuration with what stands behind it; an unknown key or a wrong type raises."""
    module = importlib.import_module(f"recipes.{recipe}")
    schemas = [v for name, v in vars(module).items() if name.endswith("Config") and dataclasses.is_dataclass(v)]
    schema = max(schemas, key=lambda found: found.__module__ == module.__name__)  # its own before one it builds on
    flags = {f"--{f.name}" for f in dataclasses.fields(schema) if "flag" in f.metadata} | {"--config"}
    assert {word for word in words if word.startswith("--")} <= flags, words
    keys = [word for before, word in itertools.pairwise(["", *words]) if "=" in word and not before.startswith("--")]
    load(schema, ROOT / config, keys)


@pytest.mark.parametrize("document", ALL)
def test_a_link_leads_to_a_file(document: str) -> None:
    for path in links(document):
        assert path.exists(), f"{document}: {path}"


@functools.cache
def code() -> str:
    """Returns all source text, with what is written over several lines joined."""
    files = [file for part in CODE for file in sorted((ROOT / part).rglob("*.py"))]
    torchtunes = Path(importlib.import_module("torchtune").__file__ or "").parent.parent / "recipes/__init__.py"
    text = "\n".join(file.read_text(encoding="utf-8") for file in [*files, torchtunes, ROOT / "Makefile"])
    return re.sub(r'"\s*\n\s*f?"', "", text)


@pytest.mark.parametrize("document", TRANSLATED)
def test_a_message_is_one_of_the_code(document: str) -> None:
    table = re.search(r"^\| (?:message|메시지) .*?\n\n", read(document), re.MULTILINE | re.DOTALL)
    assert table is not None
    messages = re.findall(r"^\| `([^`]+)`", table[0], re.MULTILINE)
    assert len(messages) >= 10
    for message in messages:
        assert message in code(), message


def test_memory_is_what_the_plan_prints() -> None:
    rows = re.findall(r"^\| .* \| ([\d /]+) \| ([\d. /]+) \| `python -m recipes\.(\w+) --config (\S+) --plan` \|$",
                      read("README.md"), re.MULTILINE)  # fmt: skip
    assert len(rows) >= 5
    for gpus, gibs, recipe, config in rows:
        told = run_here(importlib.import_module(f"recipes.{recipe}").main, ROOT / config, "plan=true").stdout
        lines = {words[0]: words[1:] for line in told.splitlines() if (words := line.split())}
        planned = dict(zip(lines["GPUs"], lines["sum"], strict=True))
        assert [planned[number] for number in gpus.split(" / ")] == gibs.split(" / "), config


def test_the_korean_readme_is_in_step() -> None:
    english, korean = map(read, TRANSLATED)
    assert commands(korean) == commands(english)
    assert headings(korean) == headings(english)
    assert table_numbers(korean) == table_numbers(english)
    assert Counter(INLINE.findall(FENCE.sub("", korean))) == Counter(INLINE.findall(FENCE.sub("", english)))
    plain = [
        [(kind, re.sub(r"\s{2,}#.*", "", body)) for kind, body in FENCE.findall(text)] for text in (korean, english)
    ]
    assert plain[0] == plain[1]
    figures = [set(re.findall(r"\d+[.,]\d+|\d{3,}", text)) for text in (korean, english)]
    assert figures[0] - {"300"} == figures[1]  # 300만, "3-million"
    swapped = {"README.md": "README.ko.md", "README.ko.md": "README.md"}
    targets = [Counter(re.findall(r"\]\(([^)]+)\)", text)) for text in (korean, english)]
    assert targets[0] == Counter({swapped.get(target, target): n for target, n in targets[1].items()})
