import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from loguru import logger

from configs.loader import ConfigError, load
from data_prep.__main__ import main
from data_prep.dedup import cluster, cluster_plan
from data_prep.document import CorpusError, Document, as_row, read_documents, write_jsonl
from data_prep.lineage import write_manifest
from tests.support import ROOT, tiny_tokenizer
from tests.unit.data_prep.dump_files import pages, write_multistream

NUM_ARTICLES = 18  # fewer than a stub family may have, which they look like

FAKES = {
    # Runs the array's tasks at once, as Slurm would one after another, and keeps what it was told.
    "sbatch": """#!/usr/bin/env bash
set -euo pipefail
log=$FAKE_SLURM/log; number=$(($(wc -l < "$log") + 1))
echo "$*" >> "$log"
for option; do case $option in --export=ALL,RUN_OFFSET=*) export RUN_OFFSET=${option##*=};; esac; done
script="${!#}"; cp "$script" "$FAKE_SLURM/script-$number"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
for task in $(seq 0 "${last:-0}"); do
    export SLURM_ARRAY_TASK_ID=$task SLURM_JOB_ID=$number SLURM_NODELIST=here
    bash "$script" > "$FAKE_SLURM/out-$number-$task" 2>&1
done
echo "Submitted batch job $number"
""",
    "srun": '#!/usr/bin/env bash\nwhile [[ $1 == -* ]]; do [[ $1 == -n ]] && shift; shift; done\nexec "$@"\n',
    "scontrol": "#!/usr/bin/env bash\necho localhost\n",
}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Takes back what datatrove's logger holds on to: the test's standard error."""
    yield
    logger.remove()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two snapshots of a wiki, a folder of other documents that holds one of the articles, and a tokenizer."""
    place = tmp_path_factory.mktemp("sources")
    rows = pages(NUM_ARTICLES)
    write_multistream(place / "new.xml.bz2", rows[5:])
    older = [row.replace("2024-01-02", "2022-01-02").replace("시험 문서이다", "시험용 문서였다") for row in rows]
    write_multistream(place / "old.xml.bz2", older)
    assert main(["clean", "--dump", str(place / "new.xml.bz2"), "--out", str(place / "scratch"), "--workers", "1"]) == 0
    first = next(read_documents(place / "scratch"))
    web = [Document("web-1", first.text, "web", "ko"), Document("web-2", "다른 글이다. " * 60, "web", "ko")]
    write_jsonl(place / "web" / "documents-00000.jsonl.zst", map(as_row, web))
    write_manifest(place / "web", {}, ledger={"in": 2, "out": 2, "dropped": {}})
    tiny_tokenizer(place / "tokenizer")
    return place


@pytest.fixture(scope="module")
def by_commands(sources: Path) -> Path:
    """What the commands make of them, one after another on this machine."""
    out = sources / "by-commands"
    for name in ("new", "old"):
        words = [
            "--dump",
            sources / f"{name}.xml.bz2",
            "--shard-mb",
            "0.003",
            "--workers",
            "1",
            "--out",
            out / "documents" / name,
        ]
        assert main(command("clean", *words)[3:]) == 0
    folders = [out / "documents" / "new", out / "documents" / "old", sources / "web"]
    assert main(command("dedup", "--documents", *folders, "--out", out / "dedup", "--workers", "1")[3:]) == 0
    words = [
        "--documents",
        out / "dedup",
        "--tokenizer",
        sources / "tokenizer",
        "--out",
        out / "tokens",
        "--workers",
        "1",
    ]
    assert main(command("tokens", *words)[3:]) == 0
    return out


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "data_prep", *map(str, words)]


def config(sources: Path, place: Path, **changes: Any) -> Path:
    place.mkdir(exist_ok=True)
    settings = {
        "output_dir": str(place / "out"),
        "clean": {name: f"--dump {sources / name}.xml.bz2 --shard-mb 0.003" for name in ("new", "old")},
        "documents": [str(sources / "web")],
        "dedup": "--keep newest",
        "tokens": f"--tokenizer {sources / 'tokenizer'}",
    }
    path = place / "cluster.yaml"
    path.write_text(yaml.safe_dump(settings | changes, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return path


def content(out: Path) -> dict[str, bytes]:
    """All files but those that name their folder or are no result."""
    left_out = {"manifest.json", "run.json"}
    files = [p for p in out.rglob("*") if p.is_file() and p.name not in left_out and "logs" not in p.parts]
    return {str(p.relative_to(out)): p.read_bytes() for p in files}


def completions(out: Path) -> list[str]:
    return sorted("/".join(p.parts[-3::2]) for p in out.glob("logs/*/*/completions/*"))


def test_the_local_executor_makes_what_the_commands_make(sources: Path, by_commands: Path, tmp_path: Path) -> None:
    words = ["--config", config(sources, tmp_path), "--executor", "local", "--workers", "2"]
    result = subprocess.run(command("cluster", *words), cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.endswith("out: dedup and tokens are complete\n")
    made, wanted = content(tmp_path / "out"), content(by_commands)
    assert sorted(made) == sorted(wanted)
    assert [name for name in made if made[name] != wanted[name]] == []
    assert len([name for name in made if name.startswith("dedup/documents-")]) == 5
    ledger = json.loads((tmp_path / "out" / "dedup" / "manifest.json").read_text(encoding="utf-8"))["ledger"]
    # In the new snapshot five articles are missing; of one of them there is a page with the same text.
    assert ledger["in"] == NUM_ARTICLES + (NUM_ARTICLES - 5 + 1) + 2
    assert ledger["out"] == NUM_ARTICLES + 1


def test_what_is_complete_is_not_made_again_and_what_is_gone_is(
    sources: Path, by_commands: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["cluster", "--config", str(config(sources, tmp_path)), "--workers", "1"]
    assert main(words) == 0
    out = tmp_path / "out"
    done, before = completions(out), {p: p.stat().st_mtime_ns for p in (out / "dedup").iterdir()}
    assert [name for name in done if "clean" in name]
    capfd.readouterr()
    assert main(words) == 0
    assert capfd.readouterr().err.count("have already been completed") == 7
    assert {p: p.stat().st_mtime_ns for p in (out / "dedup").iterdir()} == before
    subprocess.run(["rm", "-r", str(out / "dedup")], check=True)
    assert main(words) == 0
    assert content(out) == content(by_commands)
    assert completions(out) == done


def test_a_failed_rank_stops_the_stages_after_it_and_is_all_that_runs_again(
    sources: Path, by_commands: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    web = tmp_path / "web"
    subprocess.run(["cp", "-r", str(sources / "web"), str(web)], check=True)
    whole = (web / "documents-00000.jsonl.zst").read_bytes()
    (web / "documents-00000.jsonl.zst").write_bytes(whole[:-9])
    words = ["cluster", "--config", str(config(sources, tmp_path, documents=[str(web)], tokens=None)), "--workers", "1"]
    assert main(words) == 1
    assert re.search(r"error: .*web/documents-00000\.jsonl\.zst is cut short at \d+ bytes", capfd.readouterr().err)
    out = tmp_path / "out"
    assert not [name for name in completions(out) if name.startswith("4-choose")]
    (log,) = out.glob("logs/*")
    (log / "3-sketch" / "completions" / "00000").unlink()  # as if it had been killed, too
    sketches = {p.name: p.stat().st_mtime_ns for p in out.glob("dedup.tmp/work/sketches-*")}
    assert sketches
    (web / "documents-00000.jsonl.zst").write_bytes(whole)
    assert main(words) == 0
    told = json.loads((out / "dedup" / "manifest.json").read_text(encoding="utf-8"))
    assert told["ledger"]["out"] == NUM_ARTICLES + 1


def test_slurm_is_told_what_the_configuration_says_and_its_ranks_make_the_same(
    sources: Path, by_commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real scripts in stand-ins for `sbatch`, `srun` and `scontrol`; only Slurm itself is missing."""
    fakes = tmp_path / "bin"
    fakes.mkdir()
    for name, text in FAKES.items():
        (fakes / name).write_text(text)
        (fakes / name).chmod(0o755)
    (fakes / "log").touch()
    monkeypatch.setenv("PATH", f"{fakes}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(fakes))
    monkeypatch.chdir(tmp_path)  # relative paths and the code must be found by the ranks
    slurm = {
        "partition": "cpu",
        "time": "00:30:00",
        "venv": str(environment(tmp_path)),
        "choose_mem_gb": 32,
        "single_cpus": 3,
        "sbatch": {"account": "lab"},
    }
    path = config(sources, tmp_path, output_dir="out", max_tasks=2, slurm=slurm)
    assert main(["cluster", "--config", str(path), "--executor", "slurm"]) == 0
    logs = "\n".join(p.read_text() for p in fakes.glob("out-*") if "Traceback" in p.read_text())
    assert not logs, logs[-3000:]
    made, wanted = content(tmp_path / "out"), content(by_commands)
    assert {n: v for n, v in made.items() if n[:4] in ("docu", "dedu", "toke")} == wanted

    (log,) = (tmp_path / "out" / "logs").iterdir()
    num_read = {stage: counted(log / stage) for stage in ("1-clean", "3-sketch", "5-write")}  # by the stages' ranks
    num_documents = 2 * NUM_ARTICLES - 4 + 2
    assert num_read == {"1-clean": 2 * (NUM_ARTICLES + 8) - 5, "3-sketch": num_documents, "5-write": num_documents}

    submitted = (fakes / "log").read_text().splitlines()
    scripts = [(fakes / f"script-{i + 1}").read_text() for i in range(len(submitted))]
    jobs = {re.search(r"--job-name=(\S+)", s)[1]: i + 1 for i, s in enumerate(scripts) if "launch_pickled" in s}
    stages = ["1-clean", "2-assemble", "3-sketch", "4-choose", "5-write", "6-finish", "7-tokens"]
    assert list(jobs) == [f"kotune-{stage}" for stage in stages]
    for (name, number), before in zip(list(jobs.items())[1:], jobs.values(), strict=False):
        assert f"--dependency=afterok:{before}" in submitted[number - 1], name
    first, choose, tokens = (scripts[jobs[f"kotune-{n}"] - 1] for n in ("1-clean", "4-choose", "7-tokens"))
    for line in ("partition=cpu", "time=00:30:00", "account=lab", "array=0-1", "cpus-per-task=1", "mem-per-cpu=4G"):
        assert f"#SBATCH --{line}\n" in first
    assert "qos" not in first
    assert "mail" not in first
    assert "#SBATCH --mem-per-cpu=32G\n" in choose
    assert "#SBATCH --array=0-0\n" in choose
    assert "#SBATCH --cpus-per-task=3\n" in tokens
    assert f"source {slurm['venv']} && cd {tmp_path} && export PYTHONPATH={ROOT}\n" in first


def counted(stage: Path) -> int:
    """Returns the records that the ranks of a stage reported to datatrove."""
    (step,) = json.loads((stage / "stats.json").read_text(encoding="utf-8"))
    return step["stats"]["documents"]["total"]


def environment(place: Path) -> Path:
    """Returns the activate file of an environment with this interpreter's packages."""
    bin_ = place / "venv" / "bin"
    bin_.mkdir(parents=True)
    for name in ("launch_pickled_pipeline", "merge_stats"):
        (bin_ / name).symlink_to(Path(sys.executable).parent / name)
    (bin_ / "activate").write_text(f"export PATH={shlex.quote(str(bin_))}:$PATH\n")
    return bin_ / "activate"


@pytest.mark.parametrize(
    ("changes", "message", "code"),
    [
        ({"clean": {}, "documents": []}, r"clean: there is no source; at least one is expected", 2),
        (
            {"clean": {"a/b": "--dump x"}},
            r"clean\.a/b: 'a/b' names no folder; letters, digits, - and _ are expected",
            2,
        ),
        ({"clean": {"a": "--dump -"}}, r"clean\.a: '--dump -' reads standard input; a file is expected", 2),
        ({"clean": {"a": "--dump x --out y"}}, r"clean: --out is in '--dump x --out y'; `cluster` sets it itself", 2),
        ({"clean": {"a": "--dmp x"}}, r"clean: '--dmp x': .*; see python -m data_prep clean --help", 2),
        ({"dedup": "--keep oldest"}, r"dedup: '--keep oldest': .*invalid choice: 'oldest'", 2),
        ({"dedup": "--threshold 2"}, r"--threshold is 2\.0; above 0 and at most 1 is expected", 1),
        ({"tokens": ""}, r"tokens: '': .*required: --tokenizer", 2),
        ({"tokens": "--tokenizer nothing.model"}, r"nothing\.model", 1),
        ({"max_tasks": 0}, r"max_tasks: 0 is not positive", 2),
        (
            {"documents": ["nowhere"]},
            r"nowhere has no manifest\.json; a complete folder is expected; mend documents",
            1,
        ),
        ({"clean": {"a": "--dump nowhere.bz2"}}, r"nowhere\.bz2 does not exist", 1),
        ({"slurm": {"qs": "x"}}, r"slurm\.qs .*: unknown key; did you mean 'qos'\?", 2),
    ],
)
def test_what_cannot_be_used_is_named_before_anything_is_written(
    sources: Path, tmp_path: Path, changes: dict[str, Any], message: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(sources, tmp_path, **{"clean": {}} | changes)
    assert main(["cluster", "--config", str(path), "--workers", "1"]) == code
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_slurm_needs_a_login_node_a_partition_and_the_activate_file(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    path = config(sources, tmp_path, slurm={"venv": str(tmp_path)}, output_dir=str(tmp_path / "a b"))
    with pytest.raises(ConfigError) as error:
        load(cluster_plan.ClusterConfig, path, [], cluster_plan.slurm_problems)
    text = str(error.value)
    assert "slurm.partition: no value; the name of a partition is expected" in text
    assert re.search(r"slurm\.venv: .* is a folder; the file bin/activate is expected; give its path", text)
    assert "this is an array task of Slurm; a login node is expected" in text
    assert "there is no sbatch on PATH; a login node is expected" in text
    assert "a b holds a space; the scripts for Slurm take none; move it" in text
    (tmp_path / "activate").touch()
    with pytest.raises(ConfigError, match=r"has no datatrove; the extra `cluster` is expected; install it"):
        load(cluster_plan.ClusterConfig, path, [f"slurm.venv={tmp_path}/activate"], cluster_plan.slurm_problems)


def test_without_datatrove_the_extra_is_named(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    path = config(sources, tmp_path)
    with pytest.raises(CorpusError, match=r"datatrove is not installed; the extra `cluster` is expected"):
        cluster.run(cluster_arguments(path))


def cluster_arguments(path: Path, workers: int = 1) -> Any:
    import argparse

    return argparse.Namespace(config=str(path), executor="local", workers=workers, overrides=[])


def test_workers_below_one_are_named(sources: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"--workers is 0; at least 1 is needed"):
        cluster.run(cluster_arguments(config(sources, tmp_path), 0))


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "data").glob("cluster_*.yaml")), ids=lambda p: p.stem)
def test_the_shipped_configurations_can_be_read(path: Path) -> None:
    cfg = load(cluster_plan.ClusterConfig, path, [], cluster_plan.config_problems)
    for words in cfg.clean.values():
        cluster_plan.parse("clean", words, path, ["--out", "x"])
    cluster_plan.parse("dedup", cfg.dedup, path, ["--out", "x", "--documents", "y"])
    cluster_plan.parse("tokens", cfg.tokens, path, ["--out", "x", "--documents", "y"])
