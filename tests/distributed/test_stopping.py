"""Whatever asks a run of two ranks to stop, it ends in one checkpoint of its last step, and a second start goes on."""

import inspect
import json
import os
import re
import signal
import time
from contextlib import suppress

import pytest
from torch.distributed.launcher import api as launcher

from tests.distributed.runs import Launched, started

pytestmark = pytest.mark.timeout(900)  # a shared machine may take minutes for what takes seconds
IGNORE = ("bash", "-c", "trap '' USR1 USR2; exec \"$@\"", "-")
"""What a job script does before it starts the launcher."""


def assert_saved_its_last_step(run: Launched) -> None:
    """One checkpoint, of the step that the metrics end with."""
    assert run.checkpoints() == [f"step-{run.steps():08d}"], run.output
    assert (run.run / "checkpoints" / run.checkpoints()[0] / "state.json").exists()
    assert f"stopped behind step {run.steps()}: " in run.output
    assert not (run.run / "finished.json").exists()


def test_a_signal_to_one_rank_stops_all_with_the_requeue_code(tmp_path):
    with started(tmp_path) as run:
        run.until_step(2)
        os.kill(run.ranks()[1], signal.SIGUSR1)
        assert run.wait() == 1  # torchrun's, whatever the ranks' is
    assert_saved_its_last_step(run)
    assert "exitcode  : 85" in run.output
    assert "another rank was asked to" in run.output
    assert json.loads((run.run / "heartbeat.json").read_text())["phase"] == "end"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_the_launcher_forwards(tmp_path, number):
    with started(tmp_path) as run:
        run.until_step(2)
        run.ranks()
        run.launcher.send_signal(number)
        run.wait()
    assert_saved_its_last_step(run)
    assert f"{number.name}; start again" in run.output
    assert "Unable to shutdown" not in run.output


@pytest.mark.slow
def test_ctrl_c_twice_saves_once_and_breaks_nothing(tmp_path):
    with started(tmp_path) as run:
        run.until_step(2)
        run.ranks()
        for _ in range(2):  # a terminal signals the whole group, of which the ranks are no part
            os.killpg(run.launcher.pid, signal.SIGINT)
            time.sleep(0.2)
        run.wait()
        run.wait_for_ranks()
    assert_saved_its_last_step(run)
    assert "SIGINT; start again" in run.output


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGKILL])
def test_ranks_whose_launcher_dies_of_a_signal_save_and_leave(tmp_path, number):
    with started(tmp_path) as run:
        run.until_step(2)
        run.ranks()
        run.launcher.send_signal(number)
        assert run.wait() == -number
        run.wait_for_ranks()
    assert_saved_its_last_step(run)
    assert "the launcher is gone; start again" in run.output


@pytest.mark.slow
def test_a_signal_to_all_processes_as_srun_sends_it(tmp_path):
    with started(tmp_path, prefix=IGNORE) as run:
        run.until_step(2)
        for pid in [run.launcher.pid, *run.ranks().values()]:
            os.kill(pid, signal.SIGUSR1)
        assert run.wait() == 1
    assert_saved_its_last_step(run)
    assert "exitcode  : 85" in run.output


@pytest.mark.slow
def test_the_launcher_forwards_usr1_where_it_is_told_to(tmp_path):
    with started(tmp_path, PET_SIGNALS_TO_HANDLE="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2") as run:
        run.until_step(2)
        run.ranks()
        run.launcher.send_signal(signal.SIGUSR1)
        run.wait()
    assert_saved_its_last_step(run)
    assert "SIGUSR1; start again" in run.output


@pytest.mark.slow
def test_signals_during_the_save_neither_break_nor_lose_it(tmp_path):
    with started(tmp_path) as run:
        run.until_step(2)
        ranks = run.ranks()
        os.kill(ranks[0], signal.SIGTERM)
        until = time.monotonic() + 2
        while time.monotonic() < until and run.launcher.poll() is None:  # all through the save and the way out
            for pid in ranks.values():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            time.sleep(0.005)
        assert run.wait() == 1
    assert_saved_its_last_step(run)
    assert set(re.findall(r"exitcode  : (-?\d+)", run.output)) == {"85"}


@pytest.mark.slow
def test_the_request_file_stops_the_run_and_is_taken_away(tmp_path):
    with started(tmp_path) as run:
        run.until_step(2)
        (run.run / "stop").write_text("please")
        assert run.wait() == 1
    assert_saved_its_last_step(run)
    assert f"{run.run / 'stop'} exists; start again" in run.output
    assert not (run.run / "stop").exists()
    step = run.steps()
    with started(tmp_path, f"steps={step + 2}") as again:
        assert again.wait() == 0
    assert f"starts behind step {step} of" in again.log_of(0)
    assert json.loads((run.run / "finished.json").read_text()) == {"step": step + 2}


@pytest.mark.slow
def test_the_run_ends_before_its_job_does(tmp_path):
    began = time.time()
    with started(tmp_path, "steps=1") as run:  # how long a start takes here and now
        assert run.wait() == 0
    deadline = time.time() + 2 * (time.time() - began) + 40
    with started(tmp_path, "limits.margin_seconds=20", KOTUNE_DEADLINE=str(deadline)) as run:
        assert run.wait() == 1
    assert run.checkpoints()[-1] == f"step-{run.steps():08d}"
    assert (run.run / "checkpoints" / run.checkpoints()[-1]).stat().st_ctime < deadline
    assert re.search(r"stopped behind step \d+: \d+ s are left, and \d+ s are kept for a step", run.output)
    assert "exitcode  : 85" in run.output


@pytest.mark.slow
def test_torchrun_waits_for_a_long_save_where_it_is_told_to(tmp_path):
    if "SHUTDOWN_TIMEOUT" not in inspect.getsource(launcher):
        pytest.skip("this torchrun kills its ranks 30 s after the signal; the request file is the way")
    with started(tmp_path, TORCH_ELASTIC_SHUTDOWN_TIMEOUT="600") as run:
        run.until_step(2)
        slow = run.ranks()[1]
        os.kill(slow, signal.SIGSTOP)
        run.launcher.send_signal(signal.SIGTERM)
        time.sleep(35)  # more than torchrun's own patience
        os.kill(slow, signal.SIGCONT)
        run.wait()
    assert_saved_its_last_step(run)
    assert "Unable to shutdown" not in run.output
