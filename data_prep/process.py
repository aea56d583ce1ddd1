"""One command at a time: its output shown and kept, signals passed on to its process group."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from data_prep.lineage import ROOT

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Launcher:
    """Runs commands; from its making on, the signals `SIGNALS` go to the command that runs.

    A signal between two commands ends this process with 128 + its number.
    """

    def __init__(self, show: BinaryIO) -> None:
        self.received: int | None = None
        self._show = show
        self._process: subprocess.Popen[bytes] | None = None
        self._is_busy = False
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                signal.signal(number, self._on_signal)

    def run(self, words: Sequence[str], log: Path, inherited: int) -> int:
        """Runs a command without a shell, as from the repository's environment.

        Args:
            words: program and arguments; programs of this interpreter's folder come first.
            log: the output is appended here, below a line with the time and the command.
            inherited: file descriptor the command gets too; a lock on it is held until both have ended.

        Returns:
            The exit code, or minus the number of the signal that ended the command.

        Raises:
            OSError: the program does not exist or cannot be started.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab", buffering=0) as file:
            file.write(f"==== {time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(words)}\n".encode())
            self._is_busy = True
            try:
                self._process = self._start(words, inherited)
                if self.received is not None:  # it came while the process was being made
                    self._pass_on(self.received)
                self._copy_output(file)
                return self._process.wait()
            finally:
                if self._process is not None and self._process.poll() is None:
                    self._pass_on(signal.SIGTERM)
                    self._process.wait()
                self._process = None
                self._is_busy = False

    def _start(self, words: Sequence[str], inherited: int) -> subprocess.Popen[bytes]:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        modules = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        return subprocess.Popen(
            list(words),
            env={**os.environ, "PATH": path, "PYTHONPATH": modules, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
            pass_fds=[inherited],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )

    def _copy_output(self, log: BinaryIO) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with self._process.stdout as output:
            while chunk := output.read(65536):  # unbuffered: what is there, as soon as it is there
                log.write(chunk)
                self._show.write(chunk)
                self._show.flush()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.received = number
        if not self._is_busy:
            sys.exit(128 + number)
        self._pass_on(number)

    def _pass_on(self, number: int) -> None:
        if self._process is not None and self._process.returncode is None:
            os.killpg(self._process.pid, number)
