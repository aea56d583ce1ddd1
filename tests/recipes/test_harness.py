"""recipes/harness.py with the real lm-evaluation-harness, over tasks in local files."""

import json
import re
import shutil
import sys

import pytest
import yaml

from recipes.evaluation.harness_tasks import TaskSettings, task_manager, unknown_tasks
from recipes.harness import main
from tests.support import ROOT, answering_llama, launch, run_here, tiny_llama, tiny_tokenizer

pytest.importorskip("lm_eval", reason="the extra `evaluate` is not installed")

ANSWER = "seoul"
GROUP = {
    "group": "quiz",
    "task": ["quiz_small", "quiz_large"],
    "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
    "metadata": {"version": 1.0},
}


def choice_task(folder, name, examples, shots_split="train"):
    """Writes a multiple-choice task over local files, with questions about nothing."""
    for split, count in (("train", 6), ("test", examples)):
        rows = [
            {"question": f"{split} {name} 질문 {n}", "choices": ["강", "서울", "river"], "answer": (n * n) % 3}
            for n in range(count)
        ]
        path = folder / f"{name}-{split}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {s: str(folder / f"{name}-{s}.jsonl") for s in ("train", "test")}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "fewshot_split": shots_split,
        "doc_to_text": "{{question}}\n답:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
        ],
        "metadata": {"version": 1.0},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task, allow_unicode=True), encoding="utf-8")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    choice_task(folder, "quiz_small", 5)
    choice_task(folder, "quiz_large", 23)
    choice_task(folder, "quiz_leaking", 5, shots_split="test")
    (folder / "quiz.yaml").write_text(yaml.safe_dump(GROUP), encoding="utf-8")
    (folder / "capital.jsonl").write_text('{"question": "What is the capital?", "answer": "seoul"}\n' * 3)
    spoken = {
        "task": "capital",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "capital.jsonl")}},
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n\n"], "do_sample": False, "max_gen_toks": 24},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    (folder / "capital.yaml").write_text(yaml.safe_dump(spoken), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_llama(tiny_tokenizer(tmp_path_factory.mktemp("base") / "model"), max_position_embeddings=1024)


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return answering_llama(tmp_path_factory.mktemp("chat") / "model", ANSWER)


@pytest.fixture
def config(tmp_path, tasks, base):
    content = {
        "output_dir": str(tmp_path / "out"),
        "models": {"base": str(base)},
        "include": [str(tasks)],
        "tasks": [{"task": "quiz", "shots": 2, "metric": "acc"}],
        "dtype": "float32",
        "device": "cpu",
        "batch": 4,
    }
    path = tmp_path / "harness.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_scores_equal_lm_evals_own_command(config, tasks, base, tmp_path):
    launch(sys.executable, "-m", "recipes.harness", "--config", str(config))
    found = json.loads((tmp_path / "out/harness.json").read_text())["harness"]["base"][0]
    launch(
        *(sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--include_path", str(tasks)),
        *("--model_args", f"pretrained={base},dtype=float32", "--tasks", "quiz", "--num_fewshot", "2"),
        *("--device", "cpu", "--batch_size", "4", "--output_path", str(tmp_path / "theirs")),
    )
    theirs = json.loads(next((tmp_path / "theirs").rglob("results*.json")).read_text())["results"]
    assert found["subjects"] == {name: theirs[name]["acc,none"] for name in ("quiz_small", "quiz_large")}
    assert 0 < found["micro"] < 1
    assert found["micro"] == pytest.approx(theirs["quiz"]["acc,none"])
    assert found["macro"] == pytest.approx(sum(found["subjects"].values()) / 2)
    assert found["macro"] != pytest.approx(found["micro"])
    assert found["examples"] == 28
    shown = (tmp_path / "out/harness.md").read_text()
    for text in ("quiz (2-shot acc)", f"{found['macro']:.4f}", f"(micro {found['micro']:.4f})"):
        assert text in shown


@pytest.mark.slow
def test_a_result_that_is_kept_is_not_computed_again_and_another_setting_is(config, tmp_path):
    run_here(main, config)
    part = tmp_path / "out/parts/base/quiz.json"
    kept = json.loads(part.read_text())
    kept["score"]["macro"] = 0.125  # shows which of the two is read
    part.write_text(json.dumps(kept))
    assert "0.1250" in run_here(main, config).stdout
    assert "0.1250" not in run_here(main, config, "seed=7").stdout


def test_a_chat_model_is_asked_through_its_template_and_stopped_at_its_end_of_turn(config, chat):
    result = run_here(
        main, config, f"models={{chat: {chat}}}", "tasks=[{task: capital, shots: 0, metric: exact_match}]"
    )
    assert result.returncode == 0, result.stderr
    assert "1.0000" in result.stdout
    bare = run_here(
        main, config, f"models={{chat: {chat}}}", "tasks=[{task: capital, shots: 0, metric: exact_match}]",
        "chat_template=none",
    )  # fmt: skip
    assert "0.0000" in bare.stdout


def test_two_bos_tokens_end_the_run(config, base, tmp_path):
    doubled = tmp_path / "doubled"
    shutil.copytree(base, doubled)
    (doubled / "chat_template.jinja").write_text("x{{ bos_token }}{{ messages[0].content }}")
    result = run_here(main, config, f"models.base={doubled}")
    assert result.returncode == 2
    assert "a prompt starts with 2 BOS tokens; one is expected; set model_args.add_bos_token to false" in (
        result.stderr
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tasks=[{task: quizz, shots: 0, metric: acc}]", r"knows no 'quizz'; did you mean quiz\?"),
        ("tasks=[{task: quiz, shots: -1, metric: acc}]", r"tasks\[0\].shots: -1 is negative; give 0 or more"),
        (
            "tasks=[{task: quiz_leaking, shots: 2, metric: acc}]",
            "2 shots of quiz_leaking would come from the split that",
        ),
        ("tasks=[{task: quiz, shots: 2, metric: acc, fewshot_split: dev}]", "have no split 'dev'"),
        (
            "tasks=[{task: quiz, shots: 0, metric: f1}]",
            "no single metric 'f1' .none of that name.; it gives acc, acc_norm",
        ),
        ("include=[nowhere]", "include: nowhere does not exist"),
        ("backend=endpoint", "base_url: no value; backend=endpoint needs it"),
        ("chat_template=apply", "has no chat template; set chat_template=auto"),
        ("tasks=[]", "models, tasks: name at least one of each"),
    ],
)
def test_what_cannot_be_scored_is_named(config, override, message):
    result = run_here(main, config, override)
    assert result.returncode in (1, 2)
    assert re.search(message, result.stderr)


def test_the_leaking_task_is_fine_without_shots(config):
    assert run_here(main, config, "tasks=[{task: quiz_leaking, shots: 0, metric: acc}]").returncode == 0


def test_without_the_extra_the_error_says_how_to_install_it(config):
    code = f"import sys; sys.modules['lm_eval'] = None; import runpy; sys.argv[1:] = ['--config', {str(config)!r}]"
    code += "; runpy.run_module('recipes.harness', run_name='__main__')"
    result = launch(sys.executable, "-c", code, check=False)
    assert result.returncode == 2
    assert 'lm_eval is not installed; it is an extra; pip install -e ".[evaluate]"' in result.stderr


@pytest.mark.slow
def test_the_shipped_suites_name_tasks_that_the_harness_has():
    for path in sorted((ROOT / "configs/harness").glob("*.yaml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        entries = [TaskSettings(**entry) for entry in content["tasks"]]
        manager = task_manager(tuple(content.get("include", [])), tuple(entry.task for entry in entries))
        assert unknown_tasks(manager, entries) == [], path
