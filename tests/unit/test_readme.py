"""The commands that the READMEs show are understood by the programs they name, and the files they name exist."""

import contextlib
import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep import __main__ as data_prep
from tests.support import ROOT

READMES = ("README.md", "data_prep/README.md")
COMMAND = re.compile(r"^    (?:\w+=\S+ )*(python .+|tune run .+)$|`((?:python -m|tune run) [^`]+)`", re.MULTILINE)


parser = functools.cache(data_prep.make_parser)


def commands() -> Iterator[tuple[str, str]]:
    for name in READMES:
        for match in COMMAND.finditer((ROOT / name).read_text(encoding="utf-8")):
            command = match[1] or match[2]
            if "…" not in command and "COMMAND" not in command:
                yield name, command


def test_there_are_commands() -> None:
    assert len(list(commands())) > 20


@pytest.mark.parametrize(("readme", "command"), list(commands()))
def test_a_command_is_understood(readme: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(command.split("|")[-1] if "| python" in command else command)
    for word in words:
        if word.startswith(("configs/", "recipes/")):
            assert (ROOT / word).is_file(), f"{readme}: {command}"
    if words[:3] != ["python", "-m", "data_prep"]:
        return
    with contextlib.suppress(SystemExit):
        arguments = parser().parse_args(words[3:])
        assert callable(arguments.run)
        return
    pytest.fail(f"{readme}: {command}\n{capsys.readouterr().err}")


@pytest.mark.parametrize("readme", READMES)
def test_a_link_leads_to_a_file(readme: str) -> None:
    text = (ROOT / readme).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((ROOT / readme).parent / Path(link)).exists(), link
