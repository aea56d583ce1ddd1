"""Korean particles after any word, and plain sentences turned polite."""

import re
import unicodedata

# particle as written in templates -> (after a consonant, after a vowel); others are the same after every word.
_PAIRS = {
    **dict.fromkeys(("은", "는"), ("은", "는")),
    **dict.fromkeys(("이", "가"), ("이", "가")),
    **dict.fromkeys(("을", "를"), ("을", "를")),
    **dict.fromkeys(("과", "와"), ("과", "와")),
    **dict.fromkeys(("으로", "로"), ("으로", "로")),
    **dict.fromkeys(("으로는", "로는"), ("으로는", "로는")),
    **dict.fromkeys(("이나", "나"), ("이나", "나")),
    "은요": ("은요", "는요"),
}
_FINALS = ["", *"ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ"]
_DIGITS = dict(zip("0123456789", "ㅇㄹ ㅁ  ㄱㄹㄹ ", strict=True))  # 영 일 이 삼 사 오 육 칠 팔 구
_LETTER_NAMES = {"l": "ㄹ", "m": "ㅁ", "n": "ㄴ", "r": "ㄹ"}  # 엘, 엠, 엔, 알; the other names end in a vowel
_WORD_ENDS = {"l": "ㄹ", "m": "ㅁ", "n": "ㄴ", "g": "ㅇ", "k": "ㄱ", "c": "ㄱ", "p": "ㅂ", "b": "ㅂ"}
_NOT_READ = re.compile(r"(\([^()]*\)|[^\w]|_)+$")


def final_consonant(word: str) -> str:
    """Returns the final consonant with which the word is read, empty after a vowel.

    Digits are read as Sino-Korean numbers, one or two Latin letters and capitals by their names,
    other Latin words by their spelling; a closing bracket and what it encloses are not read.
    """
    text = _NOT_READ.sub("", word)
    last = text[-1:]
    if "가" <= last <= "힣":
        return _FINALS[(ord(last) - ord("가")) % 28]
    if last.isdigit():
        if len(text) > 1 and last == "0" and text[-2].isdigit():
            return "ㅂ"  # 십, 백, 천, 만: any consonant but ㄹ
        return _DIGITS.get(last, "").strip()
    letters = re.search(r"[A-Za-z]+$", unicodedata.normalize("NFKD", text))
    if letters is None:
        return ""
    spelled = len(letters[0]) <= 2 or letters[0].isupper()
    return (_LETTER_NAMES if spelled else _WORD_ENDS).get(letters[0][-1].lower(), "")


def particle(word: str, wanted: str) -> str:
    """Returns the form of the particle `wanted` (either form may be given) that follows `word`."""
    if wanted not in _PAIRS:
        return wanted
    final = final_consonant(word)
    after_vowel = not final or (final == "ㄹ" and wanted.removesuffix("는") in ("으로", "로"))
    return _PAIRS[wanted][1 if after_vowel else 0]


def polite(sentence: str) -> str:
    """Returns a plain declarative sentence (`-다.`) in the formal polite style (`-ㅂ니다.`)."""
    if not sentence.endswith("다."):
        return sentence
    stem = sentence[:-2]
    if stem.endswith("는") and len(stem) > 1 and final_consonant(stem[-2]):
        return stem[:-1] + "습니다."
    final = final_consonant(stem)
    if final in ("", "ㄴ"):
        base = ord(stem[-1]) - (_FINALS.index("ㄴ") if final else 0)
        return stem[:-1] + chr(base + _FINALS.index("ㅂ")) + "니다."
    return stem + "습니다."
