import argparse
import json
import unicodedata
from pathlib import Path

import pytest

from data_prep.dialogue import augment as dialogue
from data_prep.dialogue.augment import CUES, hangul_share, repair_spacing
from data_prep.dialogue.examples import read_chat_examples
from data_prep.document import CorpusError

EN = ["What is the capital of Korea?", "It is Seoul.", "thanks", "You are welcome."]
KO = ["한국의 수도는 어디예요?", "서울이에요.", "고마워요", "천만에요."]
XPERSONA = Path(__file__).resolve().parents[4] / "shared" / "data" / "xpersona-ko-en" / "aligned_pairs.jsonl"


def pair(id_="p1", en=EN, ko=KO):
    return {"id": id_, "en": en, "ko": ko}


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def launch(tmp_path, rows, *options):
    parser = argparse.ArgumentParser()
    dialogue.add_parser(parser.add_subparsers(required=True))
    pairs, out = write(tmp_path / "pairs.jsonl", rows), tmp_path / "chat.jsonl"
    args = parser.parse_args(["augment", "--pairs", str(pairs), "--out", str(out), *options])
    assert args.run(args) == 0
    manifest = json.loads((tmp_path / "chat.jsonl.manifest.json").read_text())
    return read_chat_examples(out), manifest


def test_one_pair_becomes_four_forms_with_one_language_pattern_each(tmp_path):
    examples, _ = launch(tmp_path, [pair()])
    assert [(example.form, example.lang) for example in examples] == [
        ("q_en-a_en", "en"),
        ("q_ko-a_ko", "ko"),
        ("q_en-a_ko", "ko"),
        ("q_ko-a_en", "en"),
    ]
    assert {example.pair_id for example in examples} == {"p1"}
    assert len({example.id for example in examples}) == 4
    for example in examples:
        question, answer = (side.split("_")[1] for side in example.form.split("-"))
        sides = {"en": EN, "ko": KO}
        contents = [message["content"] for message in example.messages]
        assert [message["role"] for message in example.messages] == ["user", "assistant"] * 2
        assert contents[1::2] == sides[answer][1::2]
        assert contents[2] == sides[question][2]
        assert contents[0].startswith(sides[question][0])


def test_only_the_crossed_forms_ask_for_a_language_and_in_that_of_the_question(tmp_path):
    rows = [
        pair(f"p{number}", [f"Is {number} even?", "I think so."], [f"{number}은 짝수예요?", "네."])
        for number in range(60)
    ]
    examples, _ = launch(tmp_path, rows)
    used = {"en-ko": set(), "ko-en": set()}
    for example in examples:
        first, form = example.messages[0]["content"], example.form.replace("q_", "").replace("a_", "")
        cues = [cue for cue in CUES.get(form, ()) if first.endswith(" " + cue)]
        assert len(cues) == (form in CUES)
        used.setdefault(form, set()).update(cues)
    assert used["en-ko"] == set(CUES["en-ko"])
    assert used["ko-en"] == set(CUES["ko-en"])
    assert all(hangul_share(cue) == 0 for cue in CUES["en-ko"])
    assert all(hangul_share(cue) == 1 for cue in CUES["ko-en"])


def test_a_question_without_a_final_mark_gets_its_cue_on_a_line_of_its_own(tmp_path):
    examples, _ = launch(tmp_path, [pair(en=["hello", "Hi."], ko=["안녕", "안녕하세요."])], "--forms", "en-ko")
    assert examples[0].messages[0]["content"].split("\n")[0] == "hello"


def test_forms_choose_a_subset(tmp_path):
    examples, manifest = launch(tmp_path, [pair()], "--forms", "en-en")
    assert [example.form for example in examples] == ["q_en-a_en"]
    assert manifest["config"]["forms"] == ["en-en"]


@pytest.mark.parametrize(
    ("en", "ko", "reason"),
    [
        (EN[:2], KO, "turns_differ"),
        (EN[:3], KO[:3], "turns_odd"),
        ([], [], "turns_odd"),
        (["Hi.", "  "], KO[:2], "turn_empty"),
        (["__SILENCE__", "Hi."], KO[:2], "silence"),
        (["Hi.<|eot_id|>", "Hi."], KO[:2], "special_token"),
        (["Hi.", "Hi."], ["안녕", "[INST] 네"], "special_token"),
        (EN[:2], ["한국의 수도는 어디예요?", "It is Seoul."], "not_ko"),
        (["What is 한국의 수도?", "It is Seoul."], KO[:2], "not_en"),
    ],
)
def test_a_faulty_pair_is_dropped_with_its_reason(tmp_path, en, ko, reason):
    examples, manifest = launch(tmp_path, [pair("good"), pair("bad", en, ko)])
    assert {example.pair_id for example in examples} == {"good"}
    assert manifest["ledger"]["pairs"] == {"in": 2, "out": 1, "dropped": {reason: 1}}
    assert manifest["rejects"] == {"bad": reason}


def test_numbers_and_names_pass_the_language_rule(tmp_path):
    rows = [
        pair("n", ["What is 6 times 7?", "42"], ["6 곱하기 7은?", "42"]),
        pair("k", EN[:2], ["수도는?", "서울(Seoul)이에요."]),
    ]
    _, manifest = launch(tmp_path, rows)
    assert manifest["ledger"]["pairs"]["out"] == 2


def test_equal_dialogues_are_kept_once_also_when_written_in_another_normal_form(tmp_path):
    other = [unicodedata.normalize("NFD", turn) for turn in KO]
    changed = ["수도를 알려 주세요.", *KO[1:]]
    examples, manifest = launch(tmp_path, [pair("a"), pair("b", ko=other), pair("c", ko=changed)])
    assert manifest["ledger"]["examples"] == {"in": 12, "out": {"chat.jsonl": 6}, "dropped": {"duplicate": 6}}
    assert [example.pair_id for example in examples] == ["a"] * 4 + ["c"] * 2
    assert all(unicodedata.is_normalized("NFC", message["content"]) for one in examples for message in one.messages)


def test_the_split_keeps_the_forms_of_a_pair_together_and_holds_its_share(tmp_path):
    rows = [pair(f"p{number}", [f"{number} a", "b"], [f"{number} 가", "나"]) for number in range(300)]
    train, manifest = launch(tmp_path, rows, "--valid-share", "0.2")
    valid = read_chat_examples(tmp_path / "chat-valid.jsonl")
    train_ids, valid_ids = ({example.pair_id for example in part} for part in (train, valid))
    assert not train_ids & valid_ids
    assert len(train_ids | valid_ids) == 300
    assert 40 < len(valid_ids) < 80
    assert manifest["ledger"]["examples"]["out"] == {"chat.jsonl": len(train), "chat-valid.jsonl": len(valid)}
    assert set(manifest["files"]) == {"chat.jsonl", "chat-valid.jsonl"}


def test_the_same_seed_writes_the_same_and_another_seed_other_wordings(tmp_path):
    rows = [pair(f"p{number}", [f"Is it {number}?", "Yes."], [f"{number}이에요?", "네."]) for number in range(20)]
    results = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        (tmp_path / name).mkdir()
        results.append(launch(tmp_path / name, rows, "--seed", seed)[0])
    assert results[0] == results[1] != results[2]


def test_a_second_run_does_nothing_and_one_with_other_options_is_an_error(tmp_path, capsys):
    launch(tmp_path, [pair()])
    before = (tmp_path / "chat.jsonl").stat().st_mtime_ns
    launch(tmp_path, [pair()])
    assert "unchanged, nothing to do" in capsys.readouterr().out
    assert (tmp_path / "chat.jsonl").stat().st_mtime_ns == before
    with pytest.raises(CorpusError, match=r"is of another run \(seed: 0 there, 3 now\)"):
        launch(tmp_path, [pair()], "--seed", "3")
    with pytest.raises(CorpusError, match=r"is of another run \(pairs: \w+ there, \w+ now\)"):
        launch(tmp_path, [pair("other")])


@pytest.mark.parametrize(
    ("text", "repaired"),
    [
        ("hello , how are you ?", "hello, how are you?"),
        ("neat ! ! i used to", "neat!! i used to"),
        ("i 'm ok , do n't worry . . .", "i'm ok, don't worry..."),
        ("the file .env :) stays , really", "the file .env :) stays, really"),
        ("cost : 5 won ;", "cost: 5 won;"),
        ("좋아요 . 그래요 ?", "좋아요. 그래요?"),
        ("first line\n , second", "first line\n , second"),
    ],
)
def test_personachat_spacing_is_repaired(text, repaired):
    assert repair_spacing(text) == repaired
    assert repair_spacing(repaired) == repaired


def test_hangul_share_counts_letters_only():
    assert hangul_share("12 !?") is None
    assert hangul_share("한글 ab 1234") == 0.5
    assert hangul_share("ㅋㅋ") == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"pairs.jsonl:2: Expecting"),
        ("[1]", r"pairs.jsonl:2: .*a JSON object is expected"),
        ('{"id": "x", "en": ["a"]}', r"pairs.jsonl:2: .*ko: \[turns\] are expected"),
        ('{"id": "", "en": ["a"], "ko": ["a"]}', r"pairs.jsonl:2: .*are expected"),
        ('{"id": "x", "en": ["a"], "ko": [1]}', r"pairs.jsonl:2: .*are expected"),
        ('{"id": "x", "en": ["\\ud800"], "ko": ["a"]}', r"pairs.jsonl:2: .*surrogates not allowed"),
        (json.dumps(pair("p0")), r"pairs.jsonl:2: id 'p0' stands in .*pairs.jsonl:1 too"),
    ],
)
def test_a_bad_line_is_an_error_with_file_and_line(tmp_path, line, message):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(pair("p0")) + "\n" + line + "\n")
    args = argparse.Namespace(pairs=path, out=tmp_path / "o.jsonl", forms="en-en", valid_share=0.0, seed=0)
    with pytest.raises(CorpusError, match=message):
        dialogue.run(args)
    assert [found.name for found in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_bad_options_a_missing_file_and_no_sound_pair_are_errors(tmp_path):
    with pytest.raises(CorpusError, match="--forms en-fr names en-fr; it knows en-en, ko-ko"):
        launch(tmp_path, [pair()], "--forms", "en-fr")
    with pytest.raises(CorpusError, match=r"--valid-share 1.0; a share from 0 to below 1"):
        launch(tmp_path, [pair()], "--valid-share", "1")
    with pytest.raises(CorpusError, match=r"gives 0 examples, 1 pairs were dropped; .*'p1': 'turns_differ'"):
        launch(tmp_path, [pair(ko=KO[:2])])
    args = argparse.Namespace(pairs=tmp_path / "no", out=tmp_path / "o", forms="en-en", valid_share=0.0, seed=0)
    with pytest.raises(CorpusError, match=r"no does not exist; a .jsonl file is expected"):
        dialogue.run(args)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": []}, r"bad.jsonl:1: .*id and messages"),
        ({"id": "a", "messages": "b"}, r"bad.jsonl:1: .*id and messages"),
        ({"id": "a", "messages": [{"role": "user", "content": "b"}], "lang": 3}, r"bad.jsonl:1: .*id and messages"),
        ({"id": "a", "messages": [{"role": "assistant", "content": "b"}]}, r"bad.jsonl:1: turn 0 has the role"),
        ({"id": "a", "messages": [{"role": "user", "content": ""}]}, r"bad.jsonl:1: message 0 has the content ''"),
    ],
)
def test_a_bad_chat_example_is_an_error_with_file_and_line(tmp_path, row, message):
    with pytest.raises(CorpusError, match=message):
        read_chat_examples(write(tmp_path / "bad.jsonl", [row]))


def test_an_empty_chat_example_file_is_an_error(tmp_path):
    with pytest.raises(CorpusError, match="holds no chat example"):
        read_chat_examples(write(tmp_path / "empty.jsonl", []))


def test_real_persona_dialogues_give_four_forms_each(tmp_path):
    if not XPERSONA.is_file():
        pytest.skip(f"{XPERSONA} is not here")
    rows = []
    for line in XPERSONA.read_text(encoding="utf-8").splitlines():
        source = json.loads(line)
        turns = source["turns"][: len(source["turns"]) // 2 * 2]
        rows.append(pair(source["id"], [turn["en"] for turn in turns], [turn["ko"] for turn in turns]))
    examples, manifest = launch(tmp_path, rows)
    assert manifest["ledger"]["pairs"]["out"] > 0.9 * len(rows)
    assert manifest["ledger"]["examples"]["in"] == 4 * manifest["ledger"]["pairs"]["out"]
    assert not any(
        " ," in message["content"] or " ?" in message["content"] for one in examples for message in one.messages
    )
