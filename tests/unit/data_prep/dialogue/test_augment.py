import argparse
import collections
import itertools
import json
import unicodedata

import pytest

from data_prep.__main__ import main
from data_prep.dialogue import augment as dialogue
from data_prep.dialogue.augment import CUES
from data_prep.dialogue.examples import read_chat_examples
from data_prep.dialogue.pairs import hangul_share, read_pairs, repair_spacing
from data_prep.document import CorpusError
from tests.support import SHARED_DATA

EN = ["What is the capital of Korea?", "It is Seoul.", "thanks", "You are welcome."]
KO = ["한국의 수도는 어디예요?", "서울이에요.", "고마워요", "천만에요."]
XPERSONA = SHARED_DATA / "xpersona-ko-en" / "aligned_pairs.jsonl"


def pair(id_="p1", en=EN, ko=KO):
    return {"id": id_, "en": en, "ko": ko}


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def run(pairs, out, *options):
    parser = argparse.ArgumentParser()
    dialogue.add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(["augment", "--pairs", str(pairs), "--out", str(out), *options])
    assert args.run(args) == 0


def launch(tmp_path, rows, *options):
    out = tmp_path / "chat.jsonl"
    run(write(tmp_path / "pairs.jsonl", rows), out, *options)
    manifest = json.loads((tmp_path / "chat.jsonl.manifest.json").read_text())
    for entry in manifest["ledger"].values():
        num_out = sum(entry["out"].values()) if isinstance(entry["out"], dict) else entry["out"]
        assert entry["in"] + entry.get("copied", 0) == num_out + sum(entry["dropped"].values())
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
        (EN[:1], KO[:1], "turns_odd"),
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
    with pytest.raises(CorpusError, match=message):
        run(path, tmp_path / "o.jsonl")
    assert [found.name for found in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_bad_options_a_missing_file_and_no_sound_pair_are_errors(tmp_path):
    with pytest.raises(CorpusError, match="--forms en-fr names en-fr; it knows en-en, ko-ko"):
        launch(tmp_path, [pair()], "--forms", "en-fr")
    with pytest.raises(CorpusError, match=r"--valid-share 1.0; a share from 0 to below 1"):
        launch(tmp_path, [pair()], "--valid-share", "1")
    with pytest.raises(CorpusError, match=r"gives 0 examples, 1 pairs were dropped; .*'p1': 'turns_differ'"):
        launch(tmp_path, [pair(ko=KO[:2])])
    with pytest.raises(CorpusError, match=r"no does not exist; a .jsonl file is expected"):
        run(tmp_path / "no", tmp_path / "o")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": []}, r"bad.jsonl:1: 0 messages without a user's"),
        ({"id": "a", "messages": "b"}, r"bad.jsonl:1: .*a list of \{role, content\} is expected"),
        ({"id": "a", "messages": [{"role": "user", "content": 3}]}, r"bad.jsonl:1: .*text as the content of each turn"),
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


def numbered(count):
    return [
        pair(f"p{n}", [f"Is {n} even?", f"About {n}: yes."], [f"{n}은 짝수예요?", f"{n}은 네."]) for n in range(count)
    ]


def test_four_thousand_pairs_give_sixteen_thousand_examples(tmp_path):
    examples, manifest = launch(tmp_path, numbered(4000))
    assert len(examples) == 16_000
    forms = collections.Counter(example.form for example in examples)
    assert forms == dict.fromkeys(("q_en-a_en", "q_ko-a_ko", "q_en-a_ko", "q_ko-a_en"), 4000)
    assert len({example.id for example in examples}) == 16_000
    assert manifest["ledger"] == {
        "pairs": {"in": 4000, "out": 4000, "dropped": {}},
        "turns": {"in": 8000, "out": 8000, "dropped": {}},
        "examples": {"in": 16_000, "out": {"chat.jsonl": 16_000}, "dropped": {}},
    }


def test_a_form_is_learnt_as_often_as_its_weight_says(tmp_path):
    examples, manifest = launch(tmp_path, numbered(1000), "--form-weights", "en-ko=0.25,ko-en=2.5,en-en=1")
    counts = collections.Counter(example.form for example in examples)
    assert (counts["q_en-a_en"], counts["q_ko-a_ko"]) == (1000, 1000)
    assert abs(counts["q_en-a_ko"] - 250) < 50
    assert abs(counts["q_ko-a_en"] - 2500) < 50
    ledger = manifest["ledger"]["examples"]
    assert ledger["dropped"] == {"form_weight": 1000 - counts["q_en-a_ko"]}
    assert ledger["copied"] == counts["q_ko-a_en"] - 1000
    assert manifest["config"]["form_weights"] == {"en-ko": 0.25, "ko-en": 2.5}
    assert len({example.id for example in examples}) == len(examples)


def test_copies_ask_for_their_language_in_other_words(tmp_path):
    examples, _ = launch(tmp_path, numbered(10), "--form-weights", "en-ko=3,en-en=2", "--forms", "en-ko,en-en")
    for number in range(10):
        own = [example for example in examples if example.pair_id == f"p{number}"]
        crossed = [example.messages[0]["content"] for example in own if example.form == "q_en-a_ko"]
        assert len(crossed) == len(set(crossed)) == 3
        assert [example.messages for example in own[3:]] == [own[3].messages] * 2


def test_a_larger_weight_only_adds(tmp_path):
    found = []
    for weight in ("0.2", "0.6", "1", "1.5"):
        (tmp_path / weight).mkdir()
        examples, _ = launch(tmp_path / weight, numbered(200), "--form-weights", f"ko-en={weight}")
        found.append({example.id: json.dumps(example.messages) for example in examples})
    for fewer, more in itertools.pairwise(found):
        assert fewer.items() < more.items()


def test_weights_do_not_touch_the_validation_examples(tmp_path):
    written = []
    for name, weights in (("a", ""), ("b", "en-ko=0.1,ko-en=4")):
        (tmp_path / name).mkdir()
        launch(tmp_path / name, numbered(100), "--valid-share", "0.3", "--form-weights", weights)
        written.append((tmp_path / name / "chat-valid.jsonl").read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("en-fr=1", r"--form-weights en-fr=1: no form of this run; one of en-en, ko-ko, en-ko, ko-en; mend the name"),
        ("en-ko", r"--form-weights en-ko: '' is no weight above 0 and up to 10; write en-ko=0.5"),
        ("en-ko=0", r"en-ko=0: '0' is no weight above 0 .*, or leave the form out of --forms"),
        ("en-ko=-1", r"'-1' is no weight"),
        ("en-ko=nan", r"'nan' is no weight"),
        ("en-ko=1e9", r"'1e9' is no weight"),
    ],
)
def test_a_bad_weight_is_an_error(tmp_path, weights, message):
    with pytest.raises(CorpusError, match=message):
        launch(tmp_path, [pair()], "--form-weights", weights)


def test_a_last_question_without_an_answer_is_left_out(tmp_path):
    examples, manifest = launch(tmp_path, [pair("a", EN[:3], KO[:3]), pair("b", EN[:1], KO)])
    assert [len(example.messages) for example in examples] == [2] * 4
    assert manifest["ledger"]["turns"] == {"in": 7, "out": 2, "dropped": {"unanswered": 1, "of_dropped_pairs": 4}}


def test_turns_in_both_languages_side_by_side_are_read_as_well(tmp_path):
    turns = [{"en": en, "ko": ko, "more": 1} for en, ko in zip(EN, KO, strict=True)]
    side_by_side = write(tmp_path / "a.jsonl", [{"id": "p1", "turns": turns, "score": 0.9}])
    apart = write(tmp_path / "b.jsonl", [pair()])
    assert list(read_pairs(side_by_side)) == list(read_pairs(apart))


def test_real_persona_dialogues_give_four_forms_each(tmp_path):
    if not XPERSONA.is_file():
        pytest.skip(f"{XPERSONA} is not here")
    run(XPERSONA, tmp_path / "chat.jsonl")
    examples = read_chat_examples(tmp_path / "chat.jsonl")
    ledger = json.loads((tmp_path / "chat.jsonl.manifest.json").read_text())["ledger"]
    assert ledger["pairs"]["out"] > 0.9 * ledger["pairs"]["in"]
    assert len(examples) == 4 * ledger["pairs"]["out"]
    assert not any(
        " ," in message["content"] or " ?" in message["content"] for one in examples for message in one.messages
    )


def test_the_command_stands_alone_and_beside_generate(tmp_path):
    pairs = write(tmp_path / "pairs.jsonl", [pair()])
    for number, words in enumerate((["augment"], ["dialogue", "augment"])):
        assert main([*words, "--pairs", str(pairs), "--out", str(tmp_path / f"{number}.jsonl")]) == 0
    assert (tmp_path / "0.jsonl").read_bytes() == (tmp_path / "1.jsonl").read_bytes()
