import json
import unicodedata

import pytest

from data_prep.dialogue.answers import REFUSAL, Duplicates, dialogue_fault, find_object, foreign_share, read_dialogue
from tests.unit.data_prep.dialogue.loopback import dialogue

EN = ["How do I make seaweed soup?", "Soak dried seaweed, fry it with beef in sesame oil, add water and let it simmer."]
KO = ["미역국은 어떻게 끓여요?", "마른 미역을 불리고 소고기와 참기름에 볶다가 물을 붓고 푹 끓이면 돼요."]


def rows(en=EN, ko=KO):
    return [
        {"speaker": ("user", "assistant")[number % 2], "en": e, "ko": k}
        for number, (e, k) in enumerate(zip(en, ko, strict=True))
    ]


def answer(turns):
    return json.dumps({"turns": turns}, ensure_ascii=False)


def verdict(text, finish="stop", num_turns=2):
    return read_dialogue(text, finish, num_turns, 300)


def test_a_sound_answer_gives_its_turns():
    assert verdict(answer(rows())) == (EN, KO)


@pytest.mark.parametrize(
    "text",
    [
        "```json\n{}\n```",
        "Sure! Here it is: {} I hope it helps.",
        '<think>First {{"turns": []}} hm</think>\n{}',
        "{{ broken {}",
    ],
)
def test_the_object_is_found_among_other_text(text):
    assert verdict(text.replace("{{", "{").replace("}}", "}").replace("{}", answer(rows()))) == (EN, KO)


def test_turns_come_out_in_nfc_and_without_outer_spaces():
    spread = [unicodedata.normalize("NFD", f" {turn}\n") for turn in KO]
    assert verdict(answer(rows(ko=spread))) == (EN, KO)


@pytest.mark.parametrize(
    ("text", "finish", "reason"),
    [
        (answer(rows()), "blocked", "blocked"),
        (answer(rows()), "refusal", "refusal"),
        (answer(rows())[:-20], "length", "truncated"),
        (answer(rows()), "length", "truncated"),
        (answer(rows())[:-20], "stop", "no_json"),
        ("", "stop", "no_json"),
        ('{"dialogue": []}', "stop", "no_json"),
        ("I'm sorry, but I can't help with that.", "stop", "refusal"),
        ("I’m sorry, but I cannot create this dialogue.", "stop", "refusal"),
        ("죄송하지만 그 요청은 도와드릴 수 없습니다.", "stop", "refusal"),
        ('{"turns": {"user": "a"}}', "stop", "wrong_shape"),
        ('{"turns": ["a", "b"]}', "stop", "wrong_shape"),
        (answer([{"speaker": "user", "en": "a"}]), "stop", "wrong_shape"),
        (answer(rows() * 2), "stop", "turn_count"),
        (answer([]), "stop", "turn_count"),
        (answer(rows()[::-1]), "stop", "not_alternating"),
        (answer([{**row, "speaker": "user"} for row in rows()]), "stop", "not_alternating"),
    ],
)
def test_an_answer_of_another_form_is_dropped_with_its_reason(text, finish, reason):
    assert verdict(text, finish) == reason


LONG_EN = "This is a long and quite ordinary sentence about the weather in the city and the sea."
LONG_KO = "이것은 도시와 바다의 날씨를 다루는 길고 평범한 문장이에요."


@pytest.mark.parametrize(
    ("en", "ko", "reason"),
    [
        ([EN[0], ""], KO, "turn_empty"),
        ([EN[0], EN[1] + "<|eot_id|>"], KO, "special_token"),
        (EN, [KO[0], EN[1]], "not_ko"),
        ([KO[0], EN[1]], KO, "not_en"),
        ([*EN, "Thank you so much!", LONG_EN],
         [*KO, "감사합니다!", "Ieoseun eun doshi wa bada, nalssi ga joha yo."], "not_ko"),
        ([*EN, "고마워요.", LONG_EN, "One more long question about the same soup and beef.", LONG_EN + "!"],
         [*KO, "고마워요.", LONG_KO, "같은 국과 소고기에 관한 긴 질문 하나 더요.", LONG_KO + "!"], "not_en"),
        ([*EN, "Very good.", "OK, see you!"], [*KO, "아주 좋아요.", "OK, see you!"], "untranslated"),
        ([EN[0], "As an AI language model, I do not eat soup, but people soak it."], KO, "refusal"),
        (EN, [KO[0], "저는 인공지능이라서 먹어 보지는 못했지만 미역을 불려서 볶고 끓이면 돼요."], "refusal"),
        (EN, [KO[0], KO[1] + " 出汁を使うともっと美味しくなりますよ。"], "foreign_script"),
        ([EN[0], LONG_EN * 4], [KO[0], LONG_KO * 4], "turn_too_long"),
        ([EN[0], LONG_EN], [KO[0], "네, 그래요."], "length_ratio"),
        (["User: " + EN[0], EN[1]], KO, "speaker_label"),
        (EN, ["사용자: " + KO[0], KO[1]], "speaker_label"),
        ([EN[0], "Hello [your name], soak the seaweed and fry it with some beef."], KO, "placeholder"),
        (EN, [KO[0], "[이름]님, 미역을 불려서 소고기와 볶다가 물을 붓고 푹 끓이세요."], "placeholder"),
        ([EN[0], EN[1] + " Call 010-1234-5678."], [KO[0], KO[1] + " 010-1234-5678로 전화하세요."], "pii"),
        ([EN[0], EN[1] + " Write to cook@soup.co.kr."], KO, "pii"),
        ([*EN, "Is that all of it?", EN[1], "And salt?", "A little."],
         [*KO, "그게 다예요?", KO[1], "소금은요?", "조금만요."], "repetition"),
    ],
)  # fmt: skip
def test_a_faulty_dialogue_is_dropped_with_its_reason(en, ko, reason):
    assert dialogue_fault(en, ko, 300) == reason


@pytest.mark.parametrize(
    ("en", "ko"),
    [
        (["What is 6 times 7?", "42"], ["6 곱하기 7은?", "42"]),
        (["Who made Hangul?", "King Sejong (世宗)."], ["한글은 누가 만들었나요?", "세종대왕(世宗)이에요."]),
        (["How do I print in Python?", 'print("hello")'],
         ["파이썬에서 출력은 어떻게 해?", 'print("hello")라고 쓰면 돼.']),
        (["Is the shop open?", "Sorry, we cannot open before nine."],
         ["가게 열었어요?", "죄송하지만 아홉 시 전에는 열 수 없어요."]),
        (["What is AI?", "Software that learns from examples."], ["AI가 뭐예요?", "예시에서 배우는 소프트웨어예요."]),
        (["Will it help?", "I'm sorry to hear that. I cannot say for sure."],
         ["도움이 될까요?", "안타깝네요. 장담할 수는 없어요."]),
    ],
)  # fmt: skip
def test_what_is_sound_is_not_dropped(en, ko):
    assert dialogue_fault(en, ko, 300) is None


@pytest.mark.parametrize(
    "text",
    [
        "I can't help you with that request.",
        "Unfortunately, I am unable to provide that.",
        "I'm an AI, so I have no body.",
        "That goes against my guidelines.",
        "This violates our content policy.",
        "죄송합니다만, 그런 내용은 제공해 드릴 수 없습니다.",
        "죄송하지만 해당 질문에는 답변을 드릴 수가 없어요.",
        "저는 AI 언어 모델로서 의견이 없습니다.",
        "요청하신 내용을 처리할 수 없습니다.",
    ],
)
def test_refusals_are_known(text):
    assert REFUSAL.search(text)


def test_an_object_is_found_in_hostile_text_without_delay():
    assert find_object("{" * 100_000, "turns") is None
    assert find_object('{"a":' * 50_000, "turns") is None
    assert find_object('{"turns": 1} {"turns": 2} {"other": 3}', "turns") == {"turns": 2}


def test_foreign_share_counts_letters_only():
    assert foreign_share("서울 Seoul 123 !?") == 0
    assert foreign_share("123") == 0
    assert foreign_share("서울 首爾") == 0.5
    assert foreign_share("서울(首爾)") == 0
    assert foreign_share("ㅋㅋ é") == 0


def test_of_dialogues_that_are_alike_the_first_counts():
    seen = Duplicates(0.7)
    base = dialogue(6, "a")["turns"]
    en, ko = ([turn[lang] for turn in base] for lang in ("en", "ko"))
    assert seen.fault(en, ko) is None
    assert seen.fault([turn.upper() + "!!" for turn in en], [unicodedata.normalize("NFD", turn) for turn in ko]) == (
        "duplicate"
    )
    assert seen.fault([*en[:-1], en[-1] + " Thanks."], ko) == "near_duplicate"
    other = dialogue(6, "b")["turns"]
    assert seen.fault([turn["en"] for turn in other], [turn["ko"] for turn in other]) is None


def test_short_dialogues_are_compared_whole():
    seen = Duplicates(0.7)
    assert seen.fault(["a"], ["가"]) is None
    assert seen.fault(["a"], ["가"]) == "duplicate"
    assert seen.fault(["b"], ["나"]) is None
