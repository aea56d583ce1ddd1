"""Which jobs a pipeline becomes, what sbatch is told, how long before its limit a training is warned."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from configs.loader import ConfigError, UserError, load
from data_prep import lineage, pipeline, stages
from data_prep.pipeline import PipelineConfig, check, plan
from slurm import cluster, snapshot, submit
from slurm.lead import last_rows, lead_seconds, save_seconds
from slurm.plan import job_variables, planned_jobs, sbatch_options, table
from slurm.stage import stage_of_job
from tests.support import ROOT


def make(folder: Path, *entries: dict, **more: object):
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump({"output_dir": str(folder / "out"), "stages": list(entries), **more}))
    return path


def stage(folder: Path, name: str, inputs: tuple[str, ...], output: str, **more: object) -> dict:
    places = [str(folder / one) for one in inputs]
    return {
        "name": name,
        "command": f"cp {' '.join(places)} x",
        "inputs": places,
        "outputs": [str(folder / output)],
        **more,
    }


@pytest.fixture
def diamond(tmp_path):
    """Source -> a -> b and c -> d."""
    (tmp_path / "source").write_text("text")
    entries = [
        stage(tmp_path, "a", ("source",), "made/a"),
        stage(tmp_path, "b", ("made/a",), "made/b"),
        stage(tmp_path, "c", ("made/a",), "made/c"),
        stage(tmp_path, "d", ("made",), "d"),
    ]
    return load(PipelineConfig, make(tmp_path, *entries), [], check)


def settle(cfg, *names):
    """Makes the outputs of stages and stamps them, as a run does."""
    stamps = stages.Stamps(Path(cfg.output_dir))
    for one in plan(cfg):
        if one.name in names:
            for path in one.outputs:
                path.parent.mkdir(exist_ok=True)
                path.write_text(one.name)
            stamps.end(one, stamps.dependencies(one), 1.0)


def planned(cfg):
    jobs, done = planned_jobs(cfg, stages.Stamps(Path(cfg.output_dir)))
    return {job.name: job.waits_for for job in jobs}, done


def test_jobs_wait_for_what_they_read_alone_and_only_directly(diamond):
    assert planned(diamond) == ({"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c")}, [])


def test_what_is_done_is_skipped_and_what_reads_a_job_is_not(diamond):
    settle(diamond, "a", "b")
    assert planned(diamond) == ({"c": (), "d": ("c",)}, ["a", "b"])
    settle(diamond, "c", "d")
    assert planned(diamond) == ({}, ["a", "b", "c", "d"])
    Path(diamond.stages[0].inputs[0]).write_text("other text")
    assert planned(diamond)[0].keys() == {"a", "b", "c", "d"}


def test_items_become_one_array_of_those_that_are_not_done(tmp_path):
    entry = {
        "name": "shard", "items": ["x", "y", "z"], "command": "touch {item}",
        "outputs": [f"{tmp_path}/made/{{item}}"], "resources": {"array": 2},
    }  # fmt: skip
    cfg = load(PipelineConfig, make(tmp_path, entry), [], check)
    settle(cfg, "shard-y")
    jobs, done = planned_jobs(cfg, stages.Stamps(Path(cfg.output_dir)))
    assert done == ["shard-y"]
    assert [one.name for one in jobs[0].stages] == ["shard-x", "shard-z"]
    settings = load(cluster.ClusterSettings, ROOT / "configs/slurm/default.yaml", [], cluster.check)
    words = sbatch_options(jobs[0], settings, tmp_path / "submission", {})
    assert "--array=0-1%2" in words
    assert f"--output={tmp_path}/submission/logs/shard-%A_%a.log" in words
    assert job_variables(jobs[0], settings, tmp_path)["KOTUNE_STAGES"] == "shard-x shard-z"


def training(folder: Path, **resources: object):
    config = folder / "cpt.yaml"
    config.write_text(yaml.safe_dump({"output_dir": str(folder / "run")}))
    entry = {
        "name": "cpt", "config": str(config), "outputs": [str(folder / "run")], "resources": resources,
        "command": f"tune run --nproc_per_node 2 recipes/cpt.py --config {config}",
    }  # fmt: skip
    cfg = load(PipelineConfig, make(folder, entry), [], check)
    return planned_jobs(cfg, stages.Stamps(Path(cfg.output_dir)))[0][0]


def settings_of(folder: Path, **values: object):
    (folder / "cluster.yaml").write_text(yaml.safe_dump(values))
    return load(cluster.ClusterSettings, folder / "cluster.yaml", [], cluster.check)


def test_resources_win_over_the_cluster_and_both_over_the_file(tmp_path):
    job = training(tmp_path, nodes=2, gpus_per_node=8, memory_gb=0, time="08:00:00")
    settings = settings_of(
        tmp_path, gpu_partition="gpu", partition="cpu", account="lab", exclude=["n7", "n9"], spare_nodes=1,
        time="01:00:00", sbatch={"mem": "9G", "mail-user": "x"},
    )  # fmt: skip
    words = sbatch_options(job, settings, tmp_path, {})
    assert {
        "--nodes=3", "--gpus-per-node=8", "--mem=0", "--time=08:00:00", "--partition=gpu", "--account=lab",
        "--exclude=n7,n9", "--mail-user=x", "--kill-on-invalid-dep=yes", "--signal=B:USR1@300",
    } <= set(words)  # fmt: skip
    assert words[-1] == "slurm/cpt.sbatch"
    variables = job_variables(job, settings, tmp_path)
    assert (variables["KOTUNE_RANKS_PER_NODE"], variables["KOTUNE_SPARE_NODES"]) == ("8", "1")
    assert variables["KOTUNE_STOP_TIMEOUT"] == "240"
    assert job_variables(training(tmp_path), settings, tmp_path)["KOTUNE_RANKS_PER_NODE"] == "2"
    assert "--mem=9G" in sbatch_options(training(tmp_path), settings, tmp_path, {})


def test_the_warning_comes_early_enough_for_what_the_last_run_measured(tmp_path):
    assert lead_seconds(None, 300) == lead_seconds(tmp_path, 300) == 300
    step = tmp_path / "checkpoints" / "step-00000020"
    step.mkdir(parents=True)
    (step / "data").write_text("x")
    (step / "state.json").write_text("{}")
    os.utime(step / "data", (1000, 1000))
    os.utime(step / "state.json", (1200, 1200))
    (tmp_path / "metrics.jsonl").write_text('{"speed/step_seconds": 10.0}\n{"speed/step_seconds": 30.0}\n{"speed/st')
    assert save_seconds(tmp_path) == 200
    assert len(last_rows(tmp_path, 100)) == 2
    assert lead_seconds(tmp_path, 300) == 2 * (200 + 30) + 60
    assert lead_seconds(tmp_path, 900) == 900


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"resources": {"nodes": 0}}, "stage a: resources.nodes: 0 is not positive"),
        ({"resources": {"gpus_per_node": -1}}, "resources.gpus_per_node: -1 is negative; set it to 0 or more"),
        ({"resources": {"time": "1 day"}}, "resources.time: '1 day' is no limit; .*HH:MM:SS is expected"),
        ({"resources": {"array": 2}}, "resources.array: 2, and the stage has no items"),
        ({"resources": {"gpus": 2}}, r"stages\[0\].resources.gpus .*unknown key"),
        ({"items": ["x"]}, "stage a: 1 items, and {item} stands nowhere; a stage has both or neither"),
        ({"command": "cp {item} x"}, "stage a: 0 items, and {item} stands in it"),
    ],
)
def test_what_a_stage_cannot_ask_for_is_named(tmp_path, entry, message):
    (tmp_path / "source").write_text("")
    path = make(tmp_path, stage(tmp_path, "a", ("source",), "made/a") | entry)
    with pytest.raises(ConfigError, match=message):
        load(PipelineConfig, path, [], check)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"time": "soon"}, "time: 'soon' is no limit"),
        ({"spare_nodes": -1}, "spare_nodes: -1 is negative"),
        ({"spare_nodes": 1, "preflight": False}, "only preflight picks healthy nodes"),
        ({"lead_seconds": 0}, "lead_seconds: 0; Slurm may be a minute late; set it to 120 or more"),
    ],
)
def test_a_cluster_file_that_cannot_be_used_is_refused(tmp_path, values, message):
    with pytest.raises(ConfigError, match=message):
        settings_of(tmp_path, **values)


def test_variables_of_a_pipeline_are_filled_in_and_overridden(tmp_path):
    entry = {"name": "a", "command": "echo ${vars.steps} ${vars.word}", "resources": {"nodes": "${vars.nodes}"}}
    path = make(tmp_path, entry, vars={"steps": 3, "word": "x", "nodes": 2})
    assert plan(load(PipelineConfig, path))[0].words == ("echo", "3", "x")
    cfg = load(PipelineConfig, path, ["vars.steps=7", "vars.nodes=4"])
    assert plan(cfg)[0].words == ("echo", "7", "x")
    assert cfg.stages[0].resources.nodes == 4
    with pytest.raises(ConfigError, match=r"'vars.steps' not found .*; mend the \$\{"):
        load(PipelineConfig, make(tmp_path, entry), [], check)


def test_a_copy_of_the_code_has_its_changes_and_links_the_rest(tmp_path):
    root = tmp_path / "checkout"
    (root / "recipes").mkdir(parents=True)
    (root / "recipes/cpt.py").write_text("1\n")
    (root / ".gitignore").write_text("out/\n")
    subprocess.run(
        "git init -q && git add -A && git -c user.name=x -c user.email=x@x commit -qm x",
        shell=True,
        cwd=root,
        check=True,
    )
    (root / "out").mkdir()
    (root / "out/data").write_text("data")
    (root / "notes.txt").write_text("private")
    first = snapshot.take(root / "out/one/code", root)
    assert first["changes_sha256"] is None
    (root / "recipes/cpt.py").write_text("2\n")
    (root / "recipes/new.py").write_text("3\n")
    copy = root / "out/two/code"
    second = snapshot.take(copy, root)
    assert second["changes_sha256"] not in (None, first["changes_sha256"])
    assert (copy / "recipes/cpt.py").read_text() == "2\n"
    assert (copy / "recipes/new.py").read_text() == "3\n"
    assert (root / "out/one/code/recipes/cpt.py").read_text() == "1\n"
    assert (copy / "out/data").read_text() == "data"
    assert (copy / "notes.txt").is_symlink()
    assert not (copy / ".git").exists()
    assert json.loads((copy.parent / "snapshot.json").read_text()) == second
    with pytest.raises(UserError, match="a git checkout is expected; submit from one"):
        snapshot.take(tmp_path / "elsewhere/code", tmp_path)


def test_the_same_code_in_the_checkout_and_in_its_copy_has_the_same_hash(tmp_path):
    snapshot.take(tmp_path / "code")
    question = (
        "from pathlib import Path; from data_prep import stages; "
        "s = stages.Stage('a', ('python', '-m', 'recipes.cpt'), Path('configs/cpt/demo_ko.yaml'), (), ()); "
        "print(stages.Stamps(Path('x')).dependencies(s)['code'])"
    )
    said = [
        subprocess.run(
            [os.sys.executable, "-c", question], cwd=place, env=os.environ | {"PYTHONPATH": str(place)},
            capture_output=True, text=True, check=True,
        ).stdout
        for place in (ROOT, tmp_path / "code")
    ]  # fmt: skip
    assert said[0] == said[1] != ""
    assert (tmp_path / "code/.commit").read_text().strip() == lineage.commit()


def test_a_table_is_aligned_and_has_no_trailing_blanks():
    assert table([["a", 1, "x"], ["bcd", 20, ""]], ["n", "count", "last"]) == "n    count  last\na    1      x\nbcd  20"


def test_outputs_that_were_not_written_are_named(tmp_path):
    one = stages.Stage("a", ("x",), None, (), (tmp_path / "b",))
    with pytest.raises(UserError, match=r"stage a ended well without writing .*/b; mend its `outputs`"):
        pipeline.check_outputs(one)


def test_a_job_whose_configuration_changed_while_it_waited_refuses_to_start(tmp_path):
    config, made = tmp_path / "stage.yaml", tmp_path / "made"
    config.write_text("value: 1\n")
    entry = {"name": "a", "command": f"cp x {made}", "config": str(config), "outputs": [str(made)]}
    cfg = load(PipelineConfig, make(tmp_path, entry), [], check)
    jobs, _ = planned_jobs(cfg, stages.Stamps(Path(cfg.output_dir)))
    expected = submit.fixed_dependencies(jobs, Path(cfg.output_dir))
    assert {"command", "code", f"config {config}"} == expected["a"].keys()
    (tmp_path / "expected.json").write_text(json.dumps(expected))
    environment = {"KOTUNE_SUBMISSION": str(tmp_path), "KOTUNE_STAGES": "a"}
    job = stage_of_job(environment)
    assert job is not None
    assert job.begin()
    made.write_text("x")
    job.end(1.0)
    assert not job.begin()  # as a job finds it that another one was faster than
    config.write_text("value: 2\n")
    with pytest.raises(ConfigError, match=r"stage.yaml changed since the pipeline was submitted; cancel it and submit"):
        stage_of_job(environment).begin()
    with pytest.raises(ConfigError, match="there is no stage b; one of a is expected; submit again"):
        stage_of_job(environment | {"KOTUNE_STAGES": "b"})
    assert stage_of_job({}) is None
