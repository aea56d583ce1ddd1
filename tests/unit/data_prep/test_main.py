import os
import subprocess
import sys

import pytest

from data_prep.__main__ import COMMANDS, make_parser
from data_prep.document import Document, as_row, write_jsonl
from tests.support import ROOT


def test_each_subcommand_has_one_line_of_help(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = make_parser().format_help().split("subcommands:\n")[1].splitlines()[1:]
    assert len(lines) > len(COMMANDS)
    for line in lines:
        name, told = line.split(maxsplit=1)
        assert line.startswith(f"    {name} ")
        assert len(told.split()) > 2


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_enough_ends_the_command_in_silence(tmp_path, unbuffered):
    write_jsonl(tmp_path / "documents-00000.jsonl.zst", [as_row(Document("1", "글"))])
    command = [sys.executable, "-m", "data_prep", "inspect", str(tmp_path), "--doc", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}
    out, into = os.pipe()
    os.close(out)
    process = subprocess.run(command, cwd=ROOT, env=environment, stdout=into, stderr=subprocess.PIPE, text=True)
    os.close(into)
    assert (process.returncode, process.stderr) == (141, "")
