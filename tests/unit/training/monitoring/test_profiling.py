"""A window of steps leaves a trace; what it records, when it does not, and settings that cannot be."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from recipes.training.distributed import process_group
from recipes.training.monitoring.profiling import profile_problems, step_profiler


def config(folder, first_step, steps=2):
    return OmegaConf.create(
        {"output_dir": str(folder), "steps": 6, "profile": {"first_step": first_step, "steps": steps}}
    )


def record(cfg, start, until=6):
    """Steps that each name themselves; returns the files that are left."""
    with process_group("cpu") as world, step_profiler(cfg, start, world) as profiler:
        for step in range(start + 1, until + 1):
            with torch.profiler.record_function(f"this is step {step}"):
                torch.ones(3).sum()
            profiler.step()
    return {path.name: path for path in Path(cfg.output_dir).rglob("*.*")}


@pytest.mark.parametrize(
    ("start", "first_step", "expected"), [(0, 4, {4, 5}), (0, 1, {1, 2}), (2, 4, {4, 5}), (3, 4, {4, 5}), (0, 6, {6})]
)
def test_the_trace_holds_the_steps_asked_for_and_no_other(tmp_path, start, first_step, expected):
    files = record(config(tmp_path, first_step), start)
    name = f"step-{first_step:08d}-{max(expected):08d}"
    assert set(files) == {f"{name}.json.gz", f"{name}.txt"}
    events = json.loads(gzip.decompress(files[f"{name}.json.gz"].read_bytes()))["traceEvents"]
    found = {int(e["name"].split()[-1]) for e in events if e.get("name", "").startswith("this is step")}
    assert found == expected
    assert "aten::sum" in files[f"{name}.txt"].read_text()


def test_nothing_is_recorded_without_the_key_or_when_the_window_is_over_or_not_reached(tmp_path):
    assert not record(config(tmp_path, 3), 3)
    assert not record(OmegaConf.create({"output_dir": str(tmp_path), "steps": 6, "profile": None}), 0)
    assert not record(config(tmp_path, 5), 0, until=3)


def test_a_run_that_is_stopped_inside_the_window_leaves_what_it_has(tmp_path):
    assert len(record(config(tmp_path, 2, steps=4), 0, until=3)) == 2


def test_settings_that_cannot_be(tmp_path):
    assert profile_problems(config(tmp_path, 7)) == [
        "profile.first_step: 7 is behind the last of 6 steps; lower it, or set profile=null"
    ]
    assert profile_problems(config(tmp_path, 0, steps=0)) == [
        "profile.first_step: 0 is below 1; steps are counted from 1; raise it",
        "profile.steps: 0 is below 1; steps are counted from 1; raise it",
    ]
