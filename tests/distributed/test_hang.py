"""A rank that really stands still is named, the living ones dump their stacks, and the run ends to be started again."""

import os
import re
import signal
import time

import pytest

from tests.distributed.runs import started

pytestmark = pytest.mark.timeout(900)  # a shared machine may take minutes for what takes seconds
LIMITS = ("limits.step_seconds=6", "limits.first_step_seconds=200")


@pytest.mark.slow
def test_a_rank_that_is_stopped_is_named_and_the_run_ends_with_its_exit_code(tmp_path):
    with started(tmp_path, *LIMITS) as run:
        run.until_step(2)
        guilty = run.ranks()[1]
        os.kill(guilty, signal.SIGSTOP)
        ends = time.monotonic() + 120
        while "error: stacks: " not in run.output:
            assert time.monotonic() < ends, run.output
            time.sleep(0.1)
        os.kill(guilty, signal.SIGKILL)  # torchrun would do so after 30 s
        assert run.wait() == 1
    told = run.log_of(0)
    assert re.search(r"the run hangs: step \d+ takes longer than 6 s", told)
    assert re.search(rf"rank 1 \(\S+, pid {guilty}\), [a-z ]+ \d+ gives no sign of life", told)  # as of its last one
    assert re.search(r"rank 0 waits in step \d+: \w+, recipes/training/\S+\.py:\d+ in \w+", told)
    stacks = (run.run / "logs" / "rank-0.stacks.txt").read_text()
    assert "train_step" in stacks
    assert "torch/distributed" in stacks
    assert "exitcode  : 86" in run.output


@pytest.mark.slow
def test_a_slow_but_legal_step_does_not_trip_it(tmp_path):
    with started(tmp_path, *LIMITS) as run:
        run.until_step(2)
        guilty = run.ranks()[1]
        os.kill(guilty, signal.SIGSTOP)
        time.sleep(3)
        os.kill(guilty, signal.SIGCONT)
        step = run.steps()
        run.until_step(step + 5)
        os.kill(guilty, signal.SIGTERM)
        assert run.wait() == 1
    assert "hangs" not in run.output
    assert "exitcode  : 85" in run.output
    assert not list((run.run / "logs").glob("*.stacks.txt"))


@pytest.mark.slow
def test_a_rank_that_a_file_system_holds_up_is_named_with_its_line(tmp_path):
    with started(tmp_path, *LIMITS) as run:
        run.until_step(2)
        run.ranks()
        os.mkfifo(run.run / ".heartbeat.json.partial")  # opening it waits for a reader, as a dead server's file does
        assert run.wait() == 1
    named = r"rank 0 \(\S+, pid \d+\), step \d+ is not where the others wait for it: "
    line = r"outside a collective, recipes/training/control/heartbeat\.py:\d+ in write_json"
    for rank in (0, 1):
        assert re.search(named + line, run.log_of(rank))
        assert (run.run / "logs" / f"rank-{rank}.stacks.txt").stat().st_size > 500
    assert re.search(named + line, run.output)
    assert set(re.findall(r"exitcode  : (-?\d+)", run.output)) <= {"86", "-15"}
    assert "exitcode  : 86" in run.output
