"""The batch script's program: starts a command on the nodes of the job, watches it, and decides what follows.

    python -m slurm.supervise recipes.cpt --config FILE [key=value ...]     # ranks on all nodes
    python -m slurm.supervise command python -m data_prep ...              # one command on the first node

It runs in place of the batch shell (`exec`), so that the warning signal of `--signal=B:USR1@S` and Slurm's SIGTERM
reach it. Ranks are asked to save by the file `stop` in the run folder and, as long as the file may not yet be
looked at, by SIGUSR1; they agree on a step, save, and exit with 85.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

from configs.entry import exit_code_of
from slurm.attempt import (
    Fence,
    Limits,
    Outcome,
    Record,
    Signs,
    Verdict,
    fault,
    heartbeat,
    modified,
    newest_step,
    verdict,
)
from slurm.commands import SlurmError, slurm
from slurm.job import Job, Step
from slurm.stage import StageOfJob, stage_of_job


class Supervisor:
    """One attempt: its signals, its steps, and its end."""

    def __init__(self, job: Job, limits: Limits) -> None:
        self.job, self.limits = job, limits
        self.fence = Fence(job.run, job.attempt)
        self.record = Record(job.folder, is_new=job.restarts == 0)
        self.stop_asked = 0.0
        self.is_terminated = False
        self.fault: str | None = None
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def attempt(self, words: Sequence[str]) -> Verdict:
        """Runs the command once on all nodes; returns what follows.

        Raises:
            SlurmError: Slurm does not answer.
        """
        job = self.job
        if job.attempt_folder.exists():  # of another cluster's, or another year's, job of the same number
            shutil.rmtree(job.attempt_folder)
        job.attempt_folder.mkdir(parents=True)
        self.fence.take()
        self.record.start(job.attempt, job.nodes, newest_step(job.run))
        exit_code = self._preflight(words)
        if exit_code == 0:
            behind = f" behind step {newest_step(job.run)}" if job.run else ""
            say(job, f"starts on {' '.join(job.nodes)}{behind}")
            exit_code = self._run(job.training_step(words))
        if self.is_terminated and exit_code != 0:
            say(job, f"ended with {exit_code} after SIGTERM")
        stalled = self.record.end(newest_step(job.run), exit_code)
        outcome = Outcome(exit_code, job.restarts, stalled, self.is_terminated, self.fence.is_lost())
        said = verdict(outcome, self.limits)
        self.record.conclude(said)
        return said

    def _preflight(self, words: Sequence[str]) -> int:
        """Examines the nodes before the run and keeps those that are well; returns 0 or the exit code."""
        job = self.job
        if not job.has_preflight:
            return 0
        exit_code = self._run(job.preflight_step(words))
        bad = job.read_bad_nodes()
        if exit_code and bad and job.drop(bad):
            say(job, f"left out, as preflight found them bad: {' '.join(bad)}")
            return 0
        if exit_code:
            say(job, f"preflight failed with {exit_code}; its table is in {job.attempt_folder}/preflight-0.log")
        return exit_code

    def _run(self, step: Step) -> int:
        """Runs one step of the job and watches it; returns its exit code, 1 where it had to be killed."""
        failed = self.job.attempt_folder / "failed"
        failed.unlink(missing_ok=True)  # of the step before
        process = subprocess.Popen(step.words, env={**os.environ, **step.environment})
        started = time.time()
        while True:
            try:
                return abs(process.wait(timeout=1))  # minus a signal's number where srun itself was killed
            except subprocess.TimeoutExpired:
                pass
            if self.stop_asked:
                self._ask_to_stop(step)
            beat, granted = heartbeat(self.job.run, self.job.attempt)
            signs = Signs(
                now=time.time(),
                started=started,
                heartbeat=beat,
                granted=granted,
                first_failure=modified(failed),
                stop_asked=self.stop_asked,
                is_fenced=self.fence.is_lost(),
            )
            self.fault = fault(signs, self.limits, expects_heartbeat=step.is_training)
            if self.fault is not None:
                say(self.job, f"watchdog: {self.fault}")
                return self._end(process, step, signs.is_fenced)

    def _ask_to_stop(self, step: Step) -> None:
        """Asks for a checkpoint, once: by the file that rank 0 looks at, and by signal."""
        if step.was_asked:
            return
        step.was_asked = True
        if step.is_training and self.job.run is not None and not self.is_terminated:
            (self.job.run / "stop").touch()
        # A command that is no run is ended: it goes on from its own markers.
        self._signal_step(step, "USR1" if step.is_training else "TERM")

    def _signal_step(self, step: Step, name: str) -> None:
        try:
            slurm("scancel", f"--signal={name}", f"{self.job.id}.{step.number}", timeout_s=20)
        except SlurmError as error:  # the step may just have ended
            say(self.job, str(error))

    def _end(self, process: subprocess.Popen[bytes], step: Step, is_fenced: bool) -> int:
        """Ends a step that does not end by itself; returns 1.

        A fenced attempt kills its own srun only: its step's number is that of the new attempt too.
        """
        if not is_fenced:
            self._signal_step(step, "TERM")
            if wait(process, 10) is None:
                self._signal_step(step, "KILL")
                wait(process, 20)
        if process.poll() is None:  # tasks of a dead node keep srun until Slurm gives the node up
            process.kill()
            process.wait()
        return 1

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.is_terminated |= number == signal.SIGTERM
        self.stop_asked = self.stop_asked or time.time()


def wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Returns the exit code if the process ends in time."""
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None


def requeue(job: Job) -> int:
    """Makes Slurm start the job again, on other nodes than those found bad; returns only if it refuses."""
    # Slurm ends this process as soon as it has accepted; bad nodes can be excluded only behind that.
    signal.signal(signal.SIGTERM, signal.SIG_IGN if job.bad_nodes else signal.SIG_DFL)
    for number in range(10):  # a controller that restarts must not cost the job
        try:
            slurm("scontrol", "requeue", job.id, tries=1)
            job.exclude_bad_nodes()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(600)
        except SlurmError as error:
            if "contact" not in str(error) and "no answer" not in str(error):
                say(job, f"error: {error}")
                return 1
            say(job, f"{error}; trying again")
            time.sleep(min(30, 5 * (number + 1)))
    return 1


def say(job: Job, text: str) -> None:
    """Prints a line of the job's own log."""
    print(f"{time.strftime('%F %T')} [job {job.attempt}] {text}", flush=True)


def main(words: Sequence[str]) -> int:
    """Runs one attempt and what follows it; returns the job's exit code."""
    stage: StageOfJob | None = stage_of_job(os.environ)
    folder = stage.folder if stage else None
    job = Job.from_environment(os.environ, stage.words if stage else words, folder)
    limits = Limits.from_environment(os.environ)
    supervisor = Supervisor(job, limits)
    if stage is not None and not stage.begin():
        return 0
    said = supervisor.attempt(job.words)
    say(job, f"{said.what}: {said.why}")
    if said.what == "done" and stage is not None:
        stage.end(time.time() - supervisor.record.attempts[-1]["began"])
    if said.what == "requeue":
        if supervisor.is_terminated:
            return 143
        return requeue(job)
    if said.what == "left" and not supervisor.is_terminated:
        # A later attempt of this job goes on. If it is another job's run now, no job behind this one may start.
        return 1 if supervisor.fence.is_lost_to_another_job() else 0
    return {"done": 0, "left": 143}.get(said.what, 1)


if __name__ == "__main__":
    sys.exit(exit_code_of(lambda: main(sys.argv[1:])))
