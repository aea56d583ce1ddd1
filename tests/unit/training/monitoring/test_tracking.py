"""W&B is optional: what is said without it, and what it is sent; the real one where it is installed."""

import importlib.util
import sys
import types

import pytest
from omegaconf import OmegaConf

from configs.loader import ConfigError
from recipes.training.monitoring.tracking import Tracker, tracking_problems


def config(folder, **options):
    return OmegaConf.create({"output_dir": str(folder), "steps": 6, "plan": False, "wandb": options or None})


@pytest.fixture
def no_wandb(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def test_the_key_without_the_package_is_a_problem_that_names_the_remedy(tmp_path, no_wandb):
    assert tracking_problems(config(tmp_path)) == []
    (problem,) = tracking_problems(config(tmp_path, project="kotune"))
    assert problem.startswith("wandb: is set, but the package wandb is not installed")
    assert "run `pip install wandb`, or set wandb=null" in problem
    assert tracking_problems(OmegaConf.merge(config(tmp_path, project="kotune"), {"plan": True})) == []


def test_arguments_that_the_run_sets_itself_are_refused(tmp_path, no_wandb):
    problems = tracking_problems(config(tmp_path, project="kotune", id="x", dir="y"))
    assert [problem.split(":")[0] for problem in problems] == ["wandb.id", "wandb.dir", "wandb"]


class FakeRun:
    def __init__(self, **arguments):
        self.arguments, self.rows, self.metrics, self.exit_code = arguments, [], [], None
        self.id = arguments["id"] or "abc123"

    def log(self, row):
        self.rows.append(row)

    def define_metric(self, name, step_metric):
        self.metrics.append((name, step_metric))

    def finish(self, exit_code):
        self.exit_code = exit_code


@pytest.fixture
def wandb(monkeypatch):
    """A module with what is used of W&B, which keeps its runs."""
    module = types.ModuleType("wandb")
    module.errors = types.SimpleNamespace(Error=type("Error", (Exception,), {}))
    module.runs = []

    def init(**arguments):
        if arguments.get("project") == "refused":
            raise module.errors.Error("No API key\n configured")
        module.runs.append(FakeRun(**arguments))
        return module.runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_a_resumed_run_goes_on_with_the_same_wandb_run_on_the_axis_of_our_steps(tmp_path, wandb):
    cfg = config(tmp_path, project="kotune", entity="lab", mode="offline")
    tracker = Tracker(tmp_path, cfg)
    tracker.log(3, {"train/loss": 2.0})
    tracker.finish(failed=True)
    Tracker(tmp_path, cfg).finish(failed=False)
    first, second = wandb.runs
    assert (first.arguments["id"], second.arguments["id"]) == (None, "abc123")
    assert first.arguments["project"] == "kotune"
    assert first.arguments["config"]["steps"] == 6
    assert first.arguments["dir"] == str(tmp_path)
    assert first.metrics == [("*", "step")]
    assert first.rows == [{"step": 3, "train/loss": 2.0}]
    assert (first.exit_code, second.exit_code) == (1, 0)


def test_a_refusal_is_an_error_of_the_configuration(tmp_path, wandb):
    with pytest.raises(ConfigError, match=r"W&B does not start: No API key configured; log in with `wandb login`, set"):
        Tracker(tmp_path, config(tmp_path, project="refused"))


def test_the_real_one_offline(tmp_path):
    pytest.importorskip("wandb")
    tracker = Tracker(tmp_path, config(tmp_path, project="kotune", mode="offline"))
    tracker.log(1, {"train/loss": 2.0})
    tracker.finish(failed=False)
    assert list(tmp_path.rglob("*.wandb"))
    with pytest.raises(ConfigError, match=r"W&B does not start: .*proyect"):
        Tracker(tmp_path / "other", config(tmp_path, proyect="kotune"))
