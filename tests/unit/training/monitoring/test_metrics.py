"""What a resumed run keeps of metrics.jsonl, and what a row says."""

import json
import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recipes.training.monitoring.metrics import Metrics


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def write(folder, start=0, **options):
    """Writes steps up to 4, with a validation at 0, 2 and 4."""
    with Metrics(folder, start, 4, "test", **options) as metrics:
        for step in range(start, 5):
            if step > start:
                metrics.log_step(step, {"train/loss": 1.0 / step, "speed/tokens_per_second": 5.0})
            if step % 2 == 0 and (step > start or step == 0 or options.get("repeats_validation")):
                metrics.log_validation(step, {"validation/ko/loss": float(step)})


def steps(folder):
    return [(row["step"], "train/loss" in row) for row in rows(folder)]


WHOLE = [(0, False), (1, True), (2, True), (2, False), (3, True), (4, True), (4, False)]


def test_validation_has_rows_of_its_own_and_a_new_start_drops_all(tmp_path):
    write(tmp_path)
    assert steps(tmp_path) == WHOLE
    write(tmp_path)
    assert steps(tmp_path) == WHOLE


@pytest.mark.parametrize(("start", "repeats"), [(1, False), (2, True), (2, False), (3, False), (4, False), (4, True)])
def test_a_resumed_run_has_each_row_once(tmp_path, start, repeats):
    write(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "train/lo')  # as a kill leaves it
    write(tmp_path, start, repeats_validation=repeats)
    assert steps(tmp_path) == WHOLE


def test_what_is_not_finite_is_null_and_tensorboard_has_the_rest(tmp_path):
    with Metrics(tmp_path, 0, 1, "test") as metrics:
        metrics.log_step(1, {"train/loss": math.nan, "train/lr": 0.5})
    assert rows(tmp_path) == [{"step": 1, "train/loss": None, "train/lr": 0.5}]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert board.Tags()["scalars"] == ["train/lr"]
    assert [(event.step, event.value) for event in board.Scalars("train/lr")] == [(1, 0.5)]


class Recorder:
    """Stands where a W&B run would."""

    def __init__(self):
        self.rows, self.failed = [], None

    def log(self, step, values):
        self.rows.append((step, dict(values)))

    def finish(self, failed):
        self.failed = failed


def test_a_tracker_gets_the_finite_values_and_learns_how_the_run_ended(tmp_path):
    recorder = Recorder()
    with Metrics(tmp_path, 0, 1, "test", tracker=recorder) as metrics:
        metrics.log_validation(0, {"validation/ko/loss": 2.0})
        metrics.log_step(1, {"train/loss": math.inf, "train/lr": 0.5})
    assert recorder.rows == [(0, {"validation/ko/loss": 2.0}), (1, {"train/lr": 0.5})]
    assert recorder.failed is False
    with pytest.raises(RuntimeError), Metrics(tmp_path, 0, 1, "test", tracker=recorder):
        raise RuntimeError
    assert recorder.failed is True
