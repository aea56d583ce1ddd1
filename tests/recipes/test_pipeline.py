"""`python -m recipes.pipeline`, run as a user does, on stages that are small real programs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from data_prep import lineage

COPY = """
import pathlib, sys
sources, target = sys.argv[1:-1], pathlib.Path(sys.argv[-1])
target.parent.mkdir(parents=True, exist_ok=True)
print("copying", *sources)
target.write_text("".join(pathlib.Path(s).read_text() for s in sources))
"""

RESUME = """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
done = len(list(folder.iterdir()))
print("starting at", done)
for step in range(done, 3):
    (folder / str(step)).write_text("x")
    if step == 0:
        print("waiting")
        time.sleep(600)
"""


class Pipeline:
    """Two copy stages in a temporary folder: a.txt -> out/one.txt -> out/two.txt."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script = self.write("copy.py", COPY)
        self.source = self.write("a.txt", "첫째\n")
        self.config = self.write("stage.yaml", "base: below.yaml\nvalue: 1\n")
        self.base = self.write("below.yaml", "value: 0\n")
        self.out = folder / "out"
        one, two = "${output_dir}/one.txt", "${output_dir}/two.txt"
        self.stages = [
            {
                "name": "one",
                "command": f"python {self.script} {self.source} {one}",
                "config": str(self.config),
                "inputs": [str(self.source)],
                "outputs": [one],
            },
            {"name": "two", "command": f"python {self.script} {one} {two}", "inputs": [one], "outputs": [two]},
        ]

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path

    def command(self) -> list[str]:
        file = self.write("pipeline.yaml", yaml.safe_dump({"output_dir": str(self.out), "stages": self.stages}))
        return [sys.executable, "-m", "recipes.pipeline", "--config", str(file)]

    def run(self, *overrides: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*self.command(), *overrides], cwd=lineage.ROOT, capture_output=True, text=True)

    def fail(self, exit_code: int) -> str:
        result = self.run()
        assert result.returncode == exit_code, result
        assert "Traceback" not in result.stderr
        return result.stderr


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return Pipeline(tmp_path)


def ran(result: subprocess.CompletedProcess[str]) -> list[str]:
    assert result.returncode == 0, result
    return [line.split("] ")[1].split(":")[0] for line in result.stdout.splitlines() if ": done in" in line]


def test_a_second_run_skips_every_stage_and_says_so(pipeline: Pipeline) -> None:
    first = pipeline.run()
    assert ran(first) == ["one", "two"]
    assert f"copying {pipeline.source}" in first.stdout
    assert "copying" in (pipeline.out / "logs" / "one.log").read_text(encoding="utf-8")
    assert "2 stages in" in first.stdout
    stamp = json.loads((pipeline.out / ".stages" / "one.json").read_text(encoding="utf-8"))
    assert {"state", "fingerprint", "command", "commit", "outputs", "seconds"} <= stamp.keys()
    assert stamp["outputs"] == {str(pipeline.out / "one.txt"): lineage.sha256_file(pipeline.out / "one.txt")}
    second = pipeline.run()
    assert ran(second) == []
    assert "[1/2] one: unchanged, skipped\n[2/2] two: unchanged, skipped" in second.stdout


def test_a_changed_input_runs_every_stage_that_depends_on_it(pipeline: Pipeline) -> None:
    pipeline.run()
    pipeline.write("a.txt", "둘째\n")
    result = pipeline.run()
    assert ran(result) == ["one", "two"]
    assert f"one: changed since its last run: input {pipeline.source}" in result.stdout
    assert f"one: removed {pipeline.out / 'one.txt'}" in result.stdout
    assert (pipeline.out / "two.txt").read_text(encoding="utf-8") == "둘째\n"


@pytest.mark.parametrize(("name", "text"), [("stage.yaml", "base: below.yaml\nvalue: 2\n"), ("below.yaml", "v: 3\n")])
def test_a_changed_configuration_or_base_runs_its_stage_but_not_one_whose_inputs_stay_equal(
    pipeline: Pipeline, name: str, text: str
) -> None:
    pipeline.run()
    pipeline.write(name, text)
    assert ran(pipeline.run()) == ["one"]


def test_changed_code_and_changed_commands_run_again(pipeline: Pipeline) -> None:
    pipeline.run()
    pipeline.write("copy.py", COPY + "# edited\n")
    result = pipeline.run()
    assert ran(result) == ["one", "two"]
    assert "one: changed since its last run: code" in result.stdout
    pipeline.stages[1]["command"] = str(pipeline.stages[1]["command"]).replace("python ", "python -B ")
    assert ran(pipeline.run()) == ["two"]


def test_a_missing_or_altered_output_is_made_again(pipeline: Pipeline) -> None:
    pipeline.run()
    (pipeline.out / "two.txt").unlink()
    assert ran(pipeline.run()) == ["two"]
    (pipeline.out / "one.txt").write_text("by hand")
    assert ran(pipeline.run()) == ["one"]


def test_outputs_outside_the_output_folder_are_never_removed(pipeline: Pipeline) -> None:
    outside = pipeline.folder / "outside.txt"
    pipeline.stages = [{**pipeline.stages[0], "outputs": [str(outside)]}]
    pipeline.stages[0]["command"] = f"python {pipeline.script} {pipeline.source} {outside}"
    pipeline.run()
    pipeline.write("a.txt", "둘째\n")
    assert f"kept, as it lies outside output_dir: {outside}" in pipeline.run().stdout


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_stage_keeps_its_outputs_and_goes_on_from_them(
    pipeline: Pipeline, number: signal.Signals, exit_code: int
) -> None:
    script, out = pipeline.write("resume.py", RESUME), "${output_dir}/run"
    pipeline.stages = [{"name": "train", "command": f"python {script} {out}", "outputs": [out]}]
    # a shell's background job, as this test may be, ignores SIGINT, and its children inherit that
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(pipeline.command(), cwd=lineage.ROOT, stdout=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    assert process.stdout is not None
    for line in process.stdout:
        if line == "waiting\n":
            break
    assert "held by a running pipeline" in pipeline.fail(1)
    os.kill(process.pid, number)
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == exit_code
    assert f"train: stopped by {number.name}" in rest
    resumed = pipeline.run()
    assert ran(resumed) == ["train"]
    assert "starting at 1" in resumed.stdout
    assert "removed" not in resumed.stdout


def test_a_stage_orphaned_by_sigkill_holds_the_lock(pipeline: Pipeline) -> None:
    script, out = pipeline.write("resume.py", RESUME), "${output_dir}/run"
    pipeline.stages = [{"name": "train", "command": f"python {script} {out}", "outputs": [out]}]
    process = subprocess.Popen(pipeline.command(), cwd=lineage.ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line == "waiting\n":
            break
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.communicate(timeout=30)
    assert "held by a running pipeline" in pipeline.fail(1)
    os.kill(int(children[0]), signal.SIGKILL)
    deadline = time.monotonic() + 10
    while (result := pipeline.run()).returncode == 1 and time.monotonic() < deadline:
        pass
    assert ran(result) == ["train"]


def test_a_failed_stage_ends_the_pipeline_and_names_its_log(pipeline: Pipeline) -> None:
    pipeline.write("copy.py", "import sys; print('broken'); sys.exit(7)")
    error = pipeline.fail(1)
    log = pipeline.out / "logs" / "one.log"
    assert error == f"error: stage one ended with exit code 7; {log} has its output; mend the cause and run again\n"
    assert "broken" in log.read_text(encoding="utf-8")
    assert not (pipeline.out / "logs" / "two.log").exists()
    pipeline.write("copy.py", "import os; os.kill(os.getpid(), 9)")
    assert "stage one ended with signal SIGKILL" in pipeline.fail(1)
    pipeline.write("copy.py", "")
    assert "stage one ended well without writing" in pipeline.fail(1)
    pipeline.stages[0]["command"] = "no-such-program"
    assert "stage one cannot be started" in pipeline.fail(1)


def test_an_input_that_vanished_is_named_before_its_stage_runs(pipeline: Pipeline) -> None:
    pipeline.stages[0]["outputs"] = ["${output_dir}"]  # never reached: problems come first
    pipeline.stages[1]["inputs"] = ["nowhere.txt"]
    error = pipeline.fail(2)
    assert "stage two: nowhere.txt does not exist and no earlier stage makes it" in error
    assert "stage one: output" in error
    assert "holds the whole output_dir" in error
    pipeline.stages[0]["outputs"] = ["${output_dir}/one.txt"]
    pipeline.stages[1]["inputs"] = ["${output_dir}/one.txt/deeper"]
    error = pipeline.fail(2)
    assert f"input {pipeline.out / 'one.txt/deeper'} does not exist" in error
    assert not (pipeline.out / "two.txt").exists()


def test_a_plan_that_cannot_work_is_refused_before_anything_runs(pipeline: Pipeline) -> None:
    pipeline.stages[1] |= {"name": "one", "outputs": ["${output_dir}/one.txt"], "command": "python 'x --config=y"}
    error = pipeline.fail(2)
    assert "stage one: the name is given to two stages" in error
    assert "which stage one writes, overlap" in error
    assert "overlaps the input" in error
    assert "leaves a quote open" in error
    pipeline.stages[1] |= {"name": "a/b", "outputs": ["${output_dir}/logs"], "command": "x --config=y"}
    error = pipeline.fail(2)
    assert "the name makes no file name" in error
    assert "which the pipeline writes, overlap" in error
    assert "config is None, the command reads y" in error
    assert not pipeline.out.exists()


def test_the_second_run_of_a_real_sized_pipeline_is_quick(pipeline: Pipeline) -> None:
    big = pipeline.folder / "big"
    big.write_bytes(os.urandom(1 << 20) * 30)
    script = pipeline.write("big.py", "import sys, shutil; shutil.copy(sys.argv[1], sys.argv[2])")
    pipeline.stages = [
        {
            "name": f"stage{n}",
            "command": f"python {script} {source} ${{output_dir}}/{n}",
            "inputs": [str(source)],
            "outputs": [f"${{output_dir}}/{n}"],
        }
        for n, source in enumerate([big] * 5 + [script] * 11)  # 150 MB of artifacts, then small ones
    ]
    assert len(ran(pipeline.run())) == 16
    started = time.monotonic()
    assert ran(pipeline.run()) == []
    assert time.monotonic() - started < 10


def test_the_code_of_a_stage_is_everything_its_module_can_load(tmp_path: Path) -> None:
    files = {
        "data_prep/__init__.py": "",
        "data_prep/__main__.py": "def main():\n    from data_prep import dump\n",
        "data_prep/dump.py": "from .wikitext import parse\nimport numpy\n",
        "data_prep/wikitext.py": "RULES = 'templates.yaml', 'articles'\nimport recipes.late\n",
        "data_prep/articles/one.wiki": "",
        "data_prep/templates.yaml": "",
        "data_prep/unused.py": "",
        "recipes/__init__.py": "",
        "recipes/late.py": "TARGET = 'recipes.training.loop.run'\n",
        "recipes/training/__init__.py": "",
        "recipes/training/loop.py": "from . import loss\nfrom .. import other\n",
        "recipes/training/loss.py": "syntax error",
        "recipes/other.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = {str(path.relative_to(tmp_path)) for path in lineage.source_files(["data_prep"], tmp_path)}
    assert found == set(files) - {"data_prep/unused.py"}
    assert lineage.source_files(["torch"], tmp_path) == []
    assert lineage.source_files([tmp_path / "recipes/training/loop.py"], tmp_path)[-1].name == "loss.py"
