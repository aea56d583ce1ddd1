"""A whole pipeline as jobs of a real Slurm, and an array of corpus shards of which one fails."""

import json
import re
from pathlib import Path

import pytest
import yaml

from data_prep.dialogue.chat_template import LLAMA3
from slurm.submissions import submitted
from tests.slurm.conftest import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(1500)]
PIPELINE = "tests/slurm/pipeline.yaml"
CLUSTER = ("--cluster", "tests/slurm/cluster.yaml")


def command(name: str, *words: object) -> list[object]:
    return ["python", "-m", f"slurm.{name}", "--pipeline", *words]


def wait_for_all(cluster: Cluster, output_dir: Path, timeout: float) -> dict[str, str]:
    """Waits for all jobs of the last submission; returns stage -> state."""
    last = sorted((output_dir / ".submissions").glob("*/jobs.json"))[-1].parent
    jobs = {job.name: job.job for job in submitted(output_dir) if job.submission == last}

    def logs() -> str:
        written = [*(last / "logs").iterdir(), *(last / "jobs").glob("*/attempt-*/*-0.log")]
        return "\n".join(f"{path}:\n{path.read_text()[-2000:]}" for path in written)

    cluster.until(lambda: "PENDING" not in cluster.states().values(), timeout, logs)
    states = dict(zip(jobs, cluster.wait(*jobs.values(), timeout=timeout), strict=True))
    print(states, logs())  # shown where the test fails
    return states


def test_a_whole_pipeline_by_submit_and_a_second_one_has_nothing_to_do(healthy, tmp_path):
    out = tmp_path / "out"
    words = (PIPELINE, f"output_dir={out}", "vars.steps=3")
    said = healthy.run(*command("submit", *words, *CLUSTER)).stdout
    assert re.search(r"^chat-vector +\d+ +1 +- +00:10:00 +export-cpt, export-instruct +chat_vector.sbatch:", said, re.M)
    queued = healthy.run(*command("submit", *words, *CLUSTER), check=False)
    assert queued.returncode == 1
    assert re.search(r"stages are queued already: .* as job \d+.* \(.*python -m slurm.cancel", queued.stderr, re.S)
    states = wait_for_all(healthy, out, timeout=1200)
    assert set(states.values()) == {"COMPLETED"}, states
    for name in states:
        assert json.loads((out / ".stages" / f"{name}.json").read_text())["state"] == "done", name
    assert json.loads((out / "report.json").read_text())
    assert (out / "models/chat_vector/chat_template.jinja").read_text() == LLAMA3
    code = next((out / ".submissions").glob("*/code"))
    assert (code / "recipes/cpt.py").is_file()
    assert not (code / "recipes").is_symlink()
    # both runners agree on what is done; from the copy, as the checkout may have been edited meanwhile
    copy = {"cwd": code, "PYTHONPATH": str(code)}
    again = healthy.run(*command("submit", *words, *CLUSTER), **copy).stdout
    assert again.endswith("all stages are done\n"), again
    local = healthy.run("python", "-m", "recipes.pipeline", "--config", *words, **copy).stdout
    assert local.count("unchanged, skipped") == len(states)
    status = healthy.run(*command("status", *words)).stdout
    assert re.search(r"^cpt +done +\d+ +3/3 +6,144 +\d+\.\d{4} +[\d,]+ +- *$", status, re.M), status


FLAKY = """
import pathlib, sys
folder, item = pathlib.Path(sys.argv[1]), sys.argv[2]
print("shard", item)
(folder / f"{item}.ran").open("a").write("x")
if item == "c" and not (folder / "mended").exists():
    sys.exit(2)
(folder / f"{item}.txt").write_text(item)
"""


def array_pipeline(folder: Path) -> Path:
    """Writes a pipeline of four shards, of which c fails, and a stage that needs all of them."""
    script = folder / "script" / "flaky.py"  # apart: a file that a script names and that lies beside it is its code
    script.parent.mkdir()
    script.write_text(FLAKY)
    shards = {
        "name": "shard",
        "items": ["a", "b", "c", "d"],
        "command": f"python {script} {folder} {{item}}",
        "outputs": [f"{folder}/{{item}}.txt"],
        "resources": {"cpus": 1, "array": 2, "time": "00:05:00"},
    }
    texts = [f"{folder}/{item}.txt" for item in "abcd"]
    join = {
        "name": "join",
        "command": f"cp {texts[0]} {folder}/all.txt",
        "inputs": texts,
        "outputs": [f"{folder}/all.txt"],
    }
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump({"output_dir": str(folder / "out"), "stages": [shards, join]}))
    return path


def test_of_an_array_the_failed_task_alone_runs_again(healthy, tmp_path):
    pipeline = array_pipeline(tmp_path)
    healthy.run(*command("submit", pipeline, *CLUSTER))
    states = wait_for_all(healthy, tmp_path / "out", timeout=200)
    ends = {"shard-a": "COMPLETED", "shard-b": "COMPLETED", "shard-c": "FAILED", "shard-d": "COMPLETED"}
    assert states == ends | {"join": "CANCELLED"}
    status = healthy.run(*command("status", pipeline)).stdout
    assert re.search(r"^shard-c +FAILED .*the configuration cannot be used.*log: \S+shard-\d+_2.log$", status, re.M)
    assert re.search(r"^join +CANCELLED .*before it started", status, re.M)
    (tmp_path / "mended").touch()
    said = healthy.run(*command("submit", pipeline, *CLUSTER)).stdout
    assert "shard-a: unchanged, skipped" in said
    assert wait_for_all(healthy, tmp_path / "out", timeout=200) == {"shard-c": "COMPLETED", "join": "COMPLETED"}
    assert [(tmp_path / f"{item}.ran").read_text() for item in "abcd"] == ["x", "x", "xx", "x"]


def test_an_array_of_dumps_by_hand(healthy, tmp_path):
    """data_prep.sbatch alone: four parts of a sample, one a damaged file; its task fails, the others complete."""
    healthy.run("python", "-m", "data_prep", "sample", "--out", tmp_path / "sample")
    dumps = sorted((tmp_path / "sample").glob("*wiki-*multistream.xml.bz2"))
    damaged = tmp_path / "damaged-pages-articles-multistream.xml.bz2"
    damaged.write_bytes(dumps[0].read_bytes()[:200])
    (tmp_path / "dumps.txt").write_text("".join(f"{path}\n" for path in [*dumps[:2], damaged, dumps[2]]))
    words = (
        "clean",
        "--min-chars",
        "80",
        "--workers",
        "1",
        "--dump",
        "{item}",
        "--out",
        f"{tmp_path}/documents/{{name}}",
    )
    options = ("--array=0-3%2", "--cpus-per-task=1", "--mem=500M")
    more = {"KOTUNE_ITEMS": f"{tmp_path}/dumps.txt", "KOTUNE_MAX_STALLED": "1"}
    job = healthy.sbatch("data_prep.sbatch", *words, options=options, **more)
    names = [f"{job}_{index}" for index in range(4)]
    healthy.until(lambda: set(names) <= set(healthy.states()), 60)
    assert healthy.wait(*names) == ["COMPLETED", "COMPLETED", "FAILED", "COMPLETED"], healthy.log(names[2])
    made = sorted(path.parent.name for path in (tmp_path / "documents").glob("*/manifest.json"))
    assert made == sorted(path.name.split(".")[0] for path in dumps[:3])
    damaged.write_bytes(dumps[3].read_bytes())
    again = healthy.sbatch("data_prep.sbatch", *words, options=("--array=2", *options[1:]), **more)
    healthy.until(lambda: f"{again}_2" in healthy.states(), 60)
    assert healthy.wait(f"{again}_2") == ["COMPLETED"], healthy.log(f"{again}_2")
    assert (tmp_path / "documents" / damaged.name.split(".")[0] / "manifest.json").is_file()


def test_cancel_ends_what_waits_and_runs_and_the_next_submission_goes_on(healthy, tmp_path):
    pipeline = array_pipeline(tmp_path)
    text = pipeline.read_text()
    (tmp_path / "mended").touch()
    settings = yaml.safe_load(text)
    items = {"items": ["1", "2"], "command": "sleep 60{item}0", "outputs": [f"{tmp_path}/{{item}}.txt"]}
    settings["stages"] = [settings["stages"][0] | items, settings["stages"][1] | {"inputs": [f"{tmp_path}/1.txt"]}]
    pipeline.write_text(yaml.safe_dump(settings))
    healthy.run(*command("submit", pipeline, *CLUSTER))
    jobs = {job.name: job.job for job in submitted(tmp_path / "out")}
    healthy.until(lambda: healthy.states().get(jobs["shard-1"]) == "RUNNING", 60)
    said = healthy.run(*command("cancel", pipeline)).stdout
    assert re.match(r"join: job \d+ cancelled, it was PENDING\n", said)
    assert re.search(r"shard-1: job \d+_0 cancelled, it was RUNNING", said)
    assert set(healthy.wait(*jobs.values())) == {"CANCELLED"}
    assert healthy.run(*command("cancel", pipeline)).stdout == "no job of the pipeline waits or runs\n"
    pipeline.write_text(text)
    healthy.run(*command("submit", pipeline, *CLUSTER))
    assert set(wait_for_all(healthy, tmp_path / "out", timeout=200).values()) == {"COMPLETED"}


def test_an_impossible_request_is_refused_in_slurms_words_and_nothing_stays_queued(healthy, tmp_path):
    pipeline = array_pipeline(tmp_path)
    text = yaml.safe_load(pipeline.read_text())
    text["stages"][1]["resources"] = {"nodes": 9}
    pipeline.write_text(yaml.safe_dump(text))
    before = healthy.states().keys()
    result = healthy.run(*command("submit", pipeline, *CLUSTER), check=False)
    assert result.returncode == 1
    assert re.search(r"error: sbatch refused: .*[Nn]ode.*; it was asked: .*--nodes=9", result.stderr)
    new = {job: state for job, state in healthy.states().items() if job not in before}
    assert set(new.values()) <= {"CANCELLED", "COMPLETING"}, new
