"""A stage's command, typed for one machine, as Slurm starts it."""

from pathlib import Path

import pytest

from configs.loader import ConfigError, load
from data_prep.pipeline import PipelineConfig, plan
from data_prep.stages import split
from slurm.job import job_launch
from slurm.launch import launch_of, option, run_folder
from tests.support import ROOT


@pytest.mark.parametrize(
    ("command", "module", "words", "ranks", "script"),
    [
        (
            "tune run --nproc_per_node 2 recipes/cpt.py --config c.yaml steps=3",
            "recipes.cpt", "--config c.yaml steps=3", 2, "cpt.sbatch",
        ),
        ("tune run --nproc-per-node=4 recipes/sft.py --config c", "recipes.sft", "--config c", 4, "sft.sbatch"),
        ("python -m recipes.cpt --config c.yaml", "recipes.cpt", "--config c.yaml", 1, "cpt.sbatch"),
        (
            "tune run --nproc_per_node 2 recipes/chat_vector.py --config c.yaml",
            "recipes.chat_vector", "--config c.yaml", 1, "chat_vector.sbatch",  # threads, not ranks
        ),
        ("tune run --nproc_per_node 1 recipes/evaluate.py --config c.yaml", "recipes.evaluate", "--config c.yaml", 1,
         "evaluate.sbatch"),
        ("python -m recipes.evaluate_run --config c --watch", "recipes.evaluate_run", "--config c --watch", 1,
         "evaluate_run.sbatch"),
        ("python -m data_prep clean --out x", None, "python -m data_prep clean --out x", 1, "data_prep.sbatch"),
        ("python -m recipes.export --config c", None, "python -m recipes.export --config c", 1, "command.sbatch"),
        ("tune run recipes/export.py --config c", None, "tune run recipes/export.py --config c", 1, "command.sbatch"),
        ("cp a b", None, "cp a b", 1, "command.sbatch"),
    ],
)  # fmt: skip
def test_a_command_becomes_ranks_of_a_recipe_or_stays_what_it_is(command, module, words, ranks, script):
    launch = launch_of(split(command))
    assert (launch.module, " ".join(launch.words), launch.ranks_per_node) == (module, words, ranks)
    assert launch.script == script
    assert (ROOT / "slurm" / script).is_file()


def test_variables_before_a_command_are_set_and_no_part_of_it():
    launch = launch_of(
        split("env OMP_NUM_THREADS=1 A='b c' tune run --nproc_per_node 2 recipes/cpt.py --config c.yaml")
    )
    assert launch.environment == {"OMP_NUM_THREADS": "1", "A": "b c"}
    assert launch.module == "recipes.cpt"


def test_every_stage_of_every_pipeline_has_a_launch():
    for path in sorted((ROOT / "configs/pipelines").glob("*.yaml")):
        for stage in plan(load(PipelineConfig, path)):
            launch = launch_of(stage.words)
            assert launch.words, stage.name
            if launch.module:
                assert option(launch.words, "--config") == str(stage.config)


def test_the_run_folder_is_the_command_lines_the_files_or_its_bases(tmp_path):
    (tmp_path / "base.yaml").write_text("output_dir: out/base\n")
    (tmp_path / "plain.yaml").write_text("base: base.yaml\nsteps: 3\n")
    (tmp_path / "own.yaml").write_text("base: base.yaml\noutput_dir: out/own\n")
    assert run_folder(["--config", str(tmp_path / "plain.yaml")]) == Path("out/base")
    assert run_folder([f"--config={tmp_path}/own.yaml", "steps=3"]) == Path("out/own")
    assert run_folder(["--config", str(tmp_path / "own.yaml"), "output_dir=x=y", "output_dir=a=b"]) == Path("a=b")
    assert run_folder(["--config", str(tmp_path / "base.yaml"), "output_dir=a"]) == Path("a")
    assert run_folder([]) is None


def test_an_array_task_takes_its_line_of_the_items(tmp_path):
    items = tmp_path / "items.txt"
    items.write_text("dumps/ko.xml.bz2\ndumps/en.xml\n")
    words = ["command", "python", "-m", "data_prep", "clean", "--dump", "{item}", "--out", "out/{name}"]
    environment = {"KOTUNE_ITEMS": str(items), "SLURM_ARRAY_TASK_ID": "0"}
    assert job_launch(words, environment).words[4:] == ("--dump", "dumps/ko.xml.bz2", "--out", "out/ko")
    with pytest.raises(ConfigError, match=r"has no line for task 2; lines 0 to 1 are expected; mend --array"):
        job_launch(words, environment | {"SLURM_ARRAY_TASK_ID": "2"})
    with pytest.raises(ConfigError, match="no command; a recipe or `command WORDS` is expected"):
        job_launch([], {})
