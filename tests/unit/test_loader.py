"""The configuration loader: layers, types, and every problem at once."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import MISSING

from configs.loader import ConfigError, existing_path, instantiate, load, one_of, positive


@dataclass
class Source:
    shards: str = MISSING
    weight: float = 1.0


@dataclass
class Toy:
    output_dir: str = MISSING
    steps: int = 10
    note: str | None = None
    source: Source | None = None
    sources: list[Source] = field(default_factory=list)
    optimizer: dict[str, Any] = field(default_factory=lambda: {"_component_": "torch.optim.AdamW", "lr": 0.1})


def write(folder: Path, text: str, name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_file_overrides_base_and_command_line_overrides_both(tmp_path):
    write(tmp_path, "output_dir: a\nsteps: 1\nnote: base\n", "base.yaml")
    path = write(tmp_path, "base: base.yaml\nsteps: 2\n")
    cfg = load(Toy, path, ["output_dir=b=c"])
    assert (cfg.output_dir, cfg.steps, cfg.note) == ("b=c", 2, "base")


def test_all_problems_are_reported_at_once_with_suggestions(tmp_path):
    path = write(tmp_path, "setps: 5\nsteps: many\nsources: [{shards: a, weigth: 2}]\nsource: {shard: x}\n")
    with pytest.raises(ConfigError, match="6 problem") as error:
        load(Toy, path, ["bogus_key_xyz=1"])
    text = str(error.value)
    for expected in (
        "setps (", "did you mean 'steps'?", "steps (", "sources[0].weigth", "did you mean 'weight'?",
        "source.shard (", "did you mean 'shards'?", "bogus_key_xyz (command line): unknown key; the keys are",
        "output_dir: no value",
    ):  # fmt: skip
        assert expected in text


def test_missing_values_are_all_named(tmp_path):
    with pytest.raises(ConfigError, match=r"output_dir: no value; set it in the file or as output_dir=\.\.\."):
        load(Toy, write(tmp_path, "steps: 3\n"))


def test_what_a_base_interpolates_are_the_values_of_the_file_above_it(tmp_path):
    write(tmp_path, "output_dir: a\nsteps: 1\nnote: ${output_dir}/b\n", "base.yaml")
    path = write(tmp_path, "base: base.yaml\noutput_dir: c\n")
    assert load(Toy, path).note == "c/b"
    assert load(Toy, path, ["output_dir=d"]).note == "d/b"


def test_a_base_has_no_base(tmp_path):
    write(tmp_path, "base: other.yaml\n", "base.yaml")
    with pytest.raises(ConfigError, match="has a base itself; one level is allowed"):
        load(Toy, write(tmp_path, "base: base.yaml\noutput_dir: a\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [("- 1\n", "holds no mapping"), ("a: [1\n", "is not YAML"), (None, "the file does not exist")],
)
def test_unreadable_files(tmp_path, text, message):
    path = write(tmp_path, text) if text else tmp_path / "absent.yaml"
    with pytest.raises(ConfigError, match=message):
        load(Toy, path)


def test_an_override_needs_an_equals_sign(tmp_path):
    with pytest.raises(ConfigError, match="'steps' on the command line; write it as key=value"):
        load(Toy, write(tmp_path, "output_dir: a\n"), ["steps"])


def test_another_component_drops_the_old_arguments_and_the_same_keeps_them(tmp_path):
    path = write(tmp_path, "output_dir: a\n")
    assert load(Toy, path, ["optimizer.weight_decay=0"]).optimizer.lr == 0.1
    swapped = load(Toy, path, ["optimizer._component_=torch.optim.SGD", "optimizer.momentum=0.9"]).optimizer
    assert dict(swapped) == {"_component_": "torch.optim.SGD", "momentum": 0.9}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer._component_=torch.optim.AdamX", "optimizer._component_: 'torch.optim.AdamX' cannot be imported"),
        ("optimizer._component_=nothing", "has no module part"),
        ("optimizer._component_=os.system", "'os.system' is of none of the packages bitsandbytes, recipes, torch"),
        ("optimizer.weight_dekay=1", "has no such argument; did you mean 'weight_decay'?"),
    ],
)
def test_components_are_resolved_before_the_run(tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        load(Toy, write(tmp_path, "output_dir: a\n"), [override])


def test_instantiate_passes_run_time_arguments(tmp_path):
    cfg = load(Toy, write(tmp_path, "output_dir: a\noptimizer: {_component_: torch.optim.SGD, lr: 2}\n"))
    optimizer = instantiate(cfg.optimizer, [torch.zeros(3)])
    assert (optimizer.defaults["lr"], optimizer.param_groups[0]["params"][0].shape) == (2, (3,))


def test_further_checks_join_the_report(tmp_path):
    def check(cfg):
        return one_of(cfg, "note", ["x", "y"]) + positive(cfg, "steps") + existing_path(cfg, "output_dir")

    with pytest.raises(ConfigError, match="3 problem") as error:
        load(Toy, write(tmp_path, "output_dir: /does/not/exist\nsteps: 0\nnote: z\n"), check=check)
    for expected in (
        "note: 'z' is not known; one of x, y",
        "steps: 0 is not positive",
        "does not exist; give an existing",
    ):
        assert expected in str(error.value)


def test_the_configuration_is_read_only(tmp_path):
    cfg = load(Toy, write(tmp_path, "output_dir: a\n"))
    with pytest.raises(Exception, match="read-only"):
        cfg.steps = 3


@pytest.mark.parametrize("text", ["Translate: hello", "1_000", "true", "[a", "a=b", "# no comment"])
def test_the_value_of_a_text_key_is_taken_as_it_stands(tmp_path, text):
    path = write(tmp_path, "output_dir: a\nnote: b\n")
    assert load(Toy, path, [f"note={text}"]).note == text
    assert load(Toy, path, ["note=null"]).note is None
