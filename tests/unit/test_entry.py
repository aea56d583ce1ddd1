"""How programs end: exit codes, and what they say then."""

import os
import subprocess
import sys

import pytest

from configs.entry import exit_code_of
from configs.loader import ConfigError, UserError
from tests.support import ROOT


@pytest.mark.parametrize(
    ("ends", "code", "said"),
    [
        (None, 0, ""),
        (3, 3, ""),
        (UserError("mend it"), 1, "error: mend it\n"),
        (ConfigError("file", ["mend it"]), 2, "error: file: 1 problem(s)\n  - mend it\n"),
        (KeyboardInterrupt(), 130, "interrupted; what is complete is kept\n"),
    ],
)
def test_a_program_ends_with_its_code_and_says_why(capsys, monkeypatch, ends, code, said):
    def program():
        if isinstance(ends, BaseException):
            raise ends
        return ends

    assert exit_code_of(program) == code
    assert capsys.readouterr().err == said
    monkeypatch.setenv("RANK", "1")
    assert exit_code_of(program) == code
    assert capsys.readouterr().err == ""


def test_a_reader_that_has_left_ends_a_program_quietly_and_another_broken_pipe_does_not():
    program = "import sys; from configs.entry import exit_code_of; sys.exit(exit_code_of(lambda: print('x' * 100_000)))"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, **pipes) as process:  # type: ignore[call-overload]
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 141

    def write_to_a_pipe():
        reads, writes = os.pipe()
        os.close(reads)
        with open(writes, "wb", buffering=0) as pipe:
            pipe.write(b"x")

    with pytest.raises(BrokenPipeError):
        exit_code_of(write_to_a_pipe)
