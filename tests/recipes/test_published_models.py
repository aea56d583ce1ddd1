"""The pipelines of published models: at full size by their plans, and scaled down from data to a model that answers."""

import json
import re
import sys
from random import Random

import pytest
import torch

import recipes.cpt
import recipes.sft
import slurm.submit
from configs.loader import load
from data_prep import pipeline
from recipes.training.model.decoder import stated_architecture
from recipes.training.planning.estimate import bytes_per_parameter, memory
from recipes.training.planning.footprint import GIB
from recipes.training.settings import check_world
from slurm.launch import launch_of
from tests.recipes.scaled import (
    ANSWER,
    check_answer,
    check_chat_vector,
    check_report,
    files_of,
    published,
    resized,
    scale,
    served_dumps,
    skeleton,
    small_command,
    stages_of,
    weights,
    write_checkpoints,
)
from tests.support import ROOT
from tests.unit.data_prep.dialogue.loopback import WORDS, serving

OTHERS = ("demo", "kowiki_corpus")  # run as they are by `make demo`, and a part of the others
NAMES = sorted(path.stem for path in (ROOT / "configs/pipelines").glob("*.yaml") if path.stem not in OTHERS)
TRAINERS = {"recipes.cpt": recipes.cpt, "recipes.sft": recipes.sft}
DATE = "20240520"


def trainings(name):
    """Yields each training stage of a pipeline: its name, its configuration as planned, and its number of GPUs."""
    for stage, members in pipeline.groups(load(pipeline.PipelineConfig, published(name))):
        launch = launch_of(members[0].words)
        if module := TRAINERS.get(launch.module):
            schema = next(value for key, value in vars(module).items() if key in ("CptConfig", "SftConfig"))
            overrides = [word for word in launch.words[2:] if "=" in word]
            cfg = load(schema, ROOT / str(members[0].config), [*overrides, "plan=true"], module.check)
            assert stage.resources.gpus_per_node == launch.ranks_per_node, stage.name
            yield stage.name, cfg, stage.resources.nodes * stage.resources.gpus_per_node


@pytest.mark.parametrize("name", NAMES)
def test_every_training_fits_the_gpus_its_stage_asks_for(name):
    for stage, cfg, num_gpus in trainings(name):
        check_world(cfg, num_gpus)
        shape = stated_architecture(cfg.weights, cfg.model)
        needed = sum(memory(cfg, shape, bytes_per_parameter(cfg), num_gpus, cfg.micro_batch).values()) / GIB
        assert 1 < needed < cfg.estimate.gpu_memory_gib, f"{stage}: {needed:.1f} GiB on each of {num_gpus} GPUs"


@pytest.mark.parametrize("name", NAMES)
def test_every_pipeline_becomes_jobs(name, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(ROOT)
    words = ["--pipeline", str(published(name)), "--dry-run", f"output_dir={tmp_path / 'out'}"]
    monkeypatch.setattr(sys, "argv", ["submit", *words])
    assert slurm.submit.main() == 0
    said = capsys.readouterr().out
    entries = [entry.name for entry in load(pipeline.PipelineConfig, published(name)).stages]
    assert re.findall(r"^# (\S+):", said, re.M) == entries
    assert said.count("\nsbatch --parsable ") == len(entries)
    assert not (tmp_path / "out").exists()
    assert f"output_dir: out/{name}\n" in published(name).read_text(encoding="utf-8")


def test_scaling_changes_numbers_and_addresses_alone():
    command = "tune run --nproc_per_node 8 recipes/cpt.py steps=900"
    stage = {"command": command, "resources": {"nodes": 2}, "fused": True}
    small = {**resized(stage), "command": small_command(command.replace("900", "4"), None)}
    assert skeleton(small) == skeleton(stage)
    for other in ({"fused": False}, {"command": f"{command} compile=true"}, {"nodes": 2}):
        assert skeleton({**stage, **other}) != skeleton(stage)
    assert skeleton({"base_url": "http://127.0.0.1:8"}) == skeleton({"base_url": "https://a.b/c"})
    assert skeleton({"data": "out/a"}) != skeleton({"data": "out/b"})
    assert small_command("python -m data_prep download --wiki x", "http://h").endswith(" --mirror http://h")
    assert {"cpt/llama3_llams_8b.yaml", "models/llama3_8b.yaml", "data/dialogue_topics.yaml", "chat.yaml"} <= set(
        files_of("llama3_llams_8b")
    )


def test_scaling_refuses_a_string_and_a_key_that_is_not_there(tmp_path):
    file = "chat_vector/llama3_chat_vector_kor.yaml"
    with pytest.raises(AssertionError, match="differs in more than its sizes"):
        scale("llama3_chat_vector_kor", tmp_path / "a", {file: {"target": "elsewhere"}})
    with pytest.raises(KeyError):
        scale("llama3_chat_vector_kor", tmp_path / "b", {file: {"seed": 3}})


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_llams_from_dumps_and_an_endpoint_to_an_instruct_model_that_answers(tmp_path):
    name = "llama3_llams_8b"
    with served_dumps(tmp_path / "mirror", DATE) as mirror, serving() as endpoint:
        sizes = {
            f"pipelines/{name}.yaml": {"vars.dialogues": 12},
            "data/dialogue_gemini.yaml": {"base_url": endpoint.url, "requests_per_minute": 6000},
        }
        pipe = scale(name, tmp_path / "work", sizes, mirror=mirror)
        write_checkpoints(pipe.folder)
        pipe.run(GEMINI_API_KEY="a-key-for-loopback")
        again = pipe.run(GEMINI_API_KEY="a-key-for-loopback")
    assert again.count("unchanged, skipped") == len(stages_of(name))
    check_chat_vector(pipe, pipe.output / "models/chat_vector", f"out/{name}/models/base")
    assert len((pipe.output / "dialogues.jsonl").read_text(encoding="utf-8").splitlines()) == 4 * 12
    before, after = weights(pipe.output / "models/chat_vector"), weights(pipe.output / "models/instruct")
    assert any(not torch.equal(after[name], before[name]) for name in before)
    check_answer(pipe, "models/instruct")
    check_report(pipe, "Korean base", "+ chat vector", "+ SFT", ANSWER, "documents-ko", "dialogues")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_open_ko_from_three_corpora_to_a_base_and_its_instruct_preview(tmp_path):
    name = "llama3_open_ko_8b"
    more = {"validation.every_steps": 2, "validation.max_tokens": 20_000, "keep_every_steps": 4}
    with served_dumps(tmp_path / "mirror", DATE) as mirror:
        pipe = scale(name, tmp_path / "work", {f"cpt/{name}.yaml": more}, mirror=mirror)
        write_checkpoints(pipe.folder)
        write_corpora(pipe.folder / "corpora")
        pipe.run()
    ledger = json.loads((pipe.output / "dedup-ko/manifest.json").read_text(encoding="utf-8"))["ledger"]
    assert sum(ledger["dropped"].values()) == 10  # what both corpora hold
    rows = [json.loads(line) for line in (pipe.output / "cpt/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows if "validation/en/bits_per_byte" in row] == [0, 2, 4]
    check_chat_vector(pipe, pipe.output / "models/instruct_preview", f"out/{name}/models/base")
    check_answer(pipe, "models/instruct_preview")
    card = (pipe.output / "models/base/README.md").read_text(encoding="utf-8")
    assert all(
        text in card for text in ("# Llama-3-Open-Ko-8B", "AI Hub's terms of use", "terms of use of the Modu Corpus")
    )
    check_report(pipe, "Korean base", "+ chat vector", ANSWER, "aihub", "modu", "kowiki")


def write_corpora(folder):
    """Writes a corpus of JSON lines and one of text files, of forty articles each, of which they share ten."""
    texts = [article(number) for number in range(70)]
    (folder / "aihub").mkdir(parents=True)
    (folder / "modu").mkdir()
    rows = [json.dumps({"id": f"a{n}", "text": text}, ensure_ascii=False) for n, text in enumerate(texts[:40])]
    (folder / "aihub/part.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    for n, text in enumerate(texts[30:]):
        (folder / "modu" / f"{n}.txt").write_text(text, encoding="utf-8")


def article(number):
    """Returns a Korean text of thirty sentences that depends on the number."""
    random = Random(number)
    verbs = ("보았다", "그렸다", "찾았다", "옮겼다", "잊었다", "샀다")
    parts = [[*random.sample(list(WORDS.values()), 3), random.choice(verbs)] for _ in range(30)]
    return " ".join(f"{a} 옆에 있는 {b}에서 {c} 하나를 {verb}." for a, b, c, verb in parts)
