"""Scores and answers of models whose answers are known, from the documented command; and its errors."""

import json
import re

import pytest
import yaml
from torch import device, float32

from data_prep.document import Document, as_row, write_jsonl
from recipes import evaluate
from recipes.training.model.opening import find_model, open_model
from tests.support import TEXTS, answering_llama, run_here, tune_run, write_run

ANSWER = "부산."
PROMPTS = [("p-ko", "ko", "인사해 주세요."), ("p-en", "en", "Say hello.")]
QUESTIONS = [
    ("q-ko", "ko", "항구 도시는 어디인가요?", ["부산", "부산입니다"]),
    ("q-en", "en", "Which city has a harbour?", ["Busan"]),
]
TASKS = {
    "contains": {"kind": "contains", "examples": [{"question": "어디?", "answers": ["서울", "부산"]}]},
    "exact": {"kind": "exact_match", "ask": "{question}!", "examples": [{"question": "어디", "answers": ["서울"]}]},
    "choice": {
        "kind": "multiple_choice",
        "examples": [{"question": "강", "choices": ["서울", "rivers flow"], "answer": n % 2} for n in range(6)],
    },
}


@pytest.fixture(scope="module")
def korean(tmp_path_factory):
    """A model that answers every prompt with `ANSWER` and ends its turn."""
    return answering_llama(tmp_path_factory.mktemp("korean") / "model", ANSWER)


@pytest.fixture(scope="module")
def config(tmp_path_factory, korean, base):
    """An evaluation of two models, the base last in the alphabet's order but not in the table's."""
    folder = tmp_path_factory.mktemp("evaluate")
    for lang, texts in {"en": TEXTS[::2], "ko": TEXTS[1::2]}.items():
        rows = [as_row(Document(id=str(n), text=text, lang=lang)) for n, text in enumerate(texts)]
        write_jsonl(folder / lang / "documents-00000.jsonl.zst", rows)
    for name, task in TASKS.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task, allow_unicode=True), encoding="utf-8")

    def asked(text):
        return [{"role": "user", "content": text}]

    write_jsonl(folder / "prompts.jsonl", [{"id": i, "lang": lang, "messages": asked(t)} for i, lang, t in PROMPTS])
    questions = [{"id": i, "lang": lang, "messages": asked(t), "answers": a} for i, lang, t, a in QUESTIONS]
    write_jsonl(folder / "questions.jsonl", questions)
    settings = {
        "output_dir": str(folder / "out"),
        "models": {"raw base": str(base), "korean": str(korean)},
        "documents": {"ko": str(folder / "ko"), "en": str(folder / "en")},
        "prompts": str(folder / "prompts.jsonl"),
        "questions": str(folder / "questions.jsonl"),
        "tasks": {name: str(folder / f"{name}.yaml") for name in TASKS},
        "seq_len": 32,
        "stride": 16,
        "max_new_tokens": 16,
        "batch": 1,
        "device": "cpu",
    }
    path = folder / "evaluate.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def evaluated(config):
    """Standard output and report of the documented command."""
    result = tune_run(1, "evaluate", config)
    return result.stdout, json.loads((config.parent / "out/report.json").read_text(encoding="utf-8"))


def evaluate_here(config, **changes):
    """Evaluates in this process with changed settings."""
    path = config.parent / "changed.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | changes, sort_keys=False))
    return run_here(evaluate.main, path)


def test_the_report_has_a_row_a_model_in_their_order_and_its_table_is_printed(evaluated):
    printed, report = evaluated
    assert [row["model"] for row in report["rows"]] == ["raw base", "korean"]
    table = printed.split("\n\n")[0].splitlines()
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table if line.startswith("|")]
    assert [line[0] for line in lines if not line[0].startswith("-")] == ["model", "raw base", "korean"]
    assert lines[-1][-1] == "100 %"
    assert report["settings"]["decoding"] == "greedy"
    assert report["settings"]["config"]["batch"] == 1
    assert {"commit", "torch"} <= report["settings"]["versions"].keys()


def test_the_figures_are_those_of_the_known_answers(evaluated):
    base, korean = evaluated[1]["rows"]
    assert list(base) == list(korean)
    shares = {name: value for name, value in korean.items() if name != "model" and not name.startswith("bits")}
    assert shares == {
        "task_choice": 0.5,
        "chat_form_en": 1.0,
        "chat_form_ko": 1.0,
        "repetition_en": 0.0,
        "repetition_ko": 0.0,
        "answered_in_korean": 1.0,
        "exact_match": 0.5,
        "exact_match_en": 0.0,
        "exact_match_ko": 1.0,
        "task_contains": 1.0,
        "task_exact": 0.0,
    }
    assert all(0 <= value <= 1 for name, value in base.items() if name in shares)
    assert base["exact_match"] == 0
    for row in (base, korean):
        assert all(8 < row[f"bits_per_byte_{lang}"] < 12 for lang in ("ko", "en"))  # 9 bits are a blind guess


def test_tasks_and_what_is_kept_of_the_first_model_are_shown_with_their_intervals(evaluated):
    printed, report = evaluated
    assert re.search(r"\| choice +\| 6 \| 50% \(19% to 81%\)", printed)  # Wilson's interval of 3 of 6
    assert report["examples"]["task_choice"] == 6
    assert report["examples"]["repetition_ko"] == 1
    kept, (base, korean) = report["retention"], report["rows"]
    assert kept["rows"][0]["retention"] == {"ko": 1.0, "en": 1.0}
    assert kept["rows"][1]["retention"]["en"] == base["bits_per_byte_en"] / korean["bits_per_byte_en"]
    assert "retention en" in printed


def test_two_ranks_give_the_figures_of_one_bit_for_bit(config, evaluated, tmp_path):
    tune_run(2, "evaluate", config, f"output_dir={tmp_path}")
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["rows"] == evaluated[1]["rows"]
    assert report["generations"] == evaluated[1]["generations"]


def test_every_prompt_stands_with_the_answers_of_all_models(evaluated):
    generations = evaluated[1]["generations"]
    assert [(row["prompt"], row["lang"]) for row in generations] == [(text, lang) for _, lang, text in PROMPTS]
    assert [list(row["answers"]) for row in generations] == [["raw base", "korean"]] * 2
    assert [row["answers"]["korean"] for row in generations] == [ANSWER] * 2
    assert all(isinstance(row["answers"]["raw base"], str) for row in generations)


def test_what_is_not_asked_for_is_not_in_the_table(config, tmp_path, korean):
    changes = {"documents": {}, "questions": None, "tasks": {}, "output_dir": str(tmp_path)}
    assert evaluate_here(config, models={"one": str(korean)}, **changes).returncode == 0
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    shares = {"chat_form_en": 1.0, "chat_form_ko": 1.0, "repetition_en": 0.0, "repetition_ko": 0.0}
    assert report["rows"] == [{"model": "one", **shares, "answered_in_korean": 1.0}]
    assert "retention" not in report


def test_a_run_and_its_checkpoint_are_scored_as_the_model_they_hold(config, tmp_path, korean):
    source = find_model(korean)
    parameters = dict(open_model(source, device("cpu"), float32).named_parameters())
    run = write_run(tmp_path / "run", parameters, weights=str(korean), precision="fp32")
    models = {"directory": str(korean), "run": str(run), "checkpoint": str(run / "checkpoints/step-00000001")}
    assert evaluate_here(config, models=models, output_dir=str(tmp_path / "out")).returncode == 0
    rows = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))["rows"]
    assert {**rows[1], "model": ""} == {**rows[2], "model": ""} == {**rows[0], "model": ""}


def test_bfloat16_is_near_float32_and_not_it(config, tmp_path, korean):
    bits = {}
    for dtype in ("float32", "bfloat16"):
        changes = {"questions": None, "tasks": {}, "output_dir": str(tmp_path / dtype)}
        result = evaluate_here(config, models={"korean": str(korean)}, dtype=dtype, **changes)
        assert result.returncode == 0, result.stderr  # answers to the prompts too: norms stay fp32 beside bf16 matrices
        report = json.loads((tmp_path / dtype / "report.json").read_text(encoding="utf-8"))
        bits[dtype] = report["rows"][0]["bits_per_byte_ko"]
    assert bits["bfloat16"] == pytest.approx(bits["float32"], rel=0.01)
    assert bits["bfloat16"] != bits["float32"]


def refused(config, **changes):
    """Returns the exit code and standard error of an evaluation with changed settings."""
    result = evaluate_here(config, **changes)
    assert "Traceback" not in result.stderr
    return result.returncode, result.stderr


def test_models_that_cannot_be_read_are_refused_before_any_is_scored(config, korean, tmp_path):
    models = {"korean": str(korean), "gone": "/does/not/exist"}
    code, message = refused(config, models=models)
    assert code == 2
    assert "models.gone: /does/not/exist does not exist; give an existing path as models.gone=..." in message
    for models in ({"korean": str(korean), "v3.1": "/gone"}, {"korean": str(korean), "empty": str(tmp_path)}):
        code, message = refused(config, output_dir=str(tmp_path / "out"), models=models)
        assert code == 2
        assert "config.json: 1 problem(s)\n  - does not exist; give a Hugging Face model directory" in message
        assert "korean" not in message
    assert not (tmp_path / "out").exists()


def test_a_run_that_started_from_no_weights_needs_a_tokenizer(config, tmp_path, korean):
    run = write_run(tmp_path / "run", {})
    code, message = refused(config, models={"run": str(run)})
    assert code == 2
    assert "started from no weights; name the tokenizer's directory as tokenizer=..." in message


def test_settings_with_nothing_to_score_are_refused(config):
    assert "models: none is given; name at least one" in refused(config, models={})[1]
    message = "documents, prompts, questions, tasks: none is given; name what to score models on"
    assert message in refused(config, documents={}, prompts=None, questions=None, tasks={})[1]
    assert "documents.fr: /gone does not exist" in refused(config, documents={"fr": "/gone"})[1]
    assert "tasks.mine: /gone does not exist" in refused(config, tasks={"mine": "/gone"})[1]
    assert "prompts: /gone does not exist" in refused(config, prompts="/gone")[1]
    assert "batch: 0 is not positive; set it above 0" in refused(config, batch=0)[1]
    assert "stride: 33 is above seq_len=32 and leaves tokens out; lower it" in refused(config, stride=33)[1]
    assert "dtype: 'half' is not known; one of auto, bfloat16, float32" in refused(config, dtype="half")[1]
    assert "max_rise: -0.1 is below 0; 0.05 allows 5 % more bits per byte" in refused(config, max_rise=-0.1)[1]


def test_texts_longer_than_a_model_reads_are_refused_naming_it(config):
    code, message = refused(config, seq_len=512, max_new_tokens=250)
    assert code == 2
    assert "models: 4 problem(s)" in message
    assert "seq_len: 512 tokens, raw base reads 256; take fewer" in message
    assert re.search(r"prompt and answer: \d+ tokens, korean reads 256; take fewer", message)


def test_a_row_without_a_key_is_named(config, tmp_path):
    path = tmp_path / "questions.jsonl"
    lines = (config.parent / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    path.write_text(lines[0] + '\n{"id": "x", "messages": []}\n', encoding="utf-8")
    code, message = refused(config, questions=str(path))
    assert code == 1
    assert f"{path} row 2 lacks lang, answers; lang, messages, answers are needed; add it" in message
