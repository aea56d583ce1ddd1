"""The page's own words, in English and Korean; a reader switches between them without a script."""

from html import escape

WORDS = {
    "Report": "보고서",
    "Road map": "모델의 계보",
    "Results": "결과",
    "Benchmarks": "벤치마크",
    "Training loss": "학습 손실",
    "Held-out text": "검증 텍스트",
    "Throughput": "처리량",
    "Data ledger": "데이터 원장",
    "Mixtures": "데이터 구성",
    "Sample generations": "생성 예시",
    "Chat vector": "챗 벡터",
    "Scale sweep": "배율 비교",
    "Commands and versions": "명령과 버전",
    "Settings of the evaluation": "평가 설정",
    "Model": "모델",
    "Answer": "답변",
    "Task": "과제",
    "What": "항목",
    "Count": "개수",
    "Source": "출처",
    "Tokens": "토큰",
    "Epochs": "에폭",
    "Share": "비율",
    "Tensor": "텐서",
    "Change": "변화",
    "Size": "크기",
    "Ratio": "비",
    "Bits per byte, Korean": "바이트당 비트, 한국어",
    "Bits per byte, English": "바이트당 비트, 영어",
    "Ends its turn, Korean prompts": "차례를 끝냄, 한국어 질문",
    "Ends its turn, English prompts": "차례를 끝냄, 영어 질문",
    "Korean prompts answered in Korean": "한국어 질문에 한국어로 답함",
    "Exact match": "정답 일치",
    "Exact match, Korean": "정답 일치, 한국어",
    "Exact match, English": "정답 일치, 영어",
    "Lower is better for bits per byte, higher for all others. Small figures: the difference from the first row, "
    "and the 95 % confidence interval.": "바이트당 비트는 낮을수록, 나머지는 높을수록 좋습니다. 작은 글씨는 첫 행과의 "
    "차이와 95 % 신뢰 구간입니다.",
    "A group's score is the mean of its subjects, ± 1.96 standard errors; micro: the mean of its examples.": "묶음 "
    "과제의 점수는 과목 평균이며 ±는 표준 오차의 1.96배입니다. micro는 문항 평균입니다.",
    "Bits per byte of text that no run has trained on.": "어떤 학습에도 쓰지 않은 텍스트의 바이트당 비트입니다.",
    "Arrows point from what was read to what was made.": "화살표는 읽은 것에서 만든 것으로 향합니다.",
    "Recommended scale": "추천 배율",
    "none": "없음",
    "documents": "문서",
    "tokens": "토큰",
    "run": "학습",
    "model": "모델",
    "examples": "대화 예시",
    "data": "데이터",
    "No finite values.": "표시할 값이 없습니다.",
}
LANGUAGES = {"en": "English", "ko": "한국어"}


def both(text: str, tag: str = "span") -> str:
    """Returns a text of `WORDS` in both languages, of which the page shows one; other text stays as it is, escaped.

    Args:
        text: in English.
        tag: of the elements; `tspan` inside a drawing.
    """
    if text not in WORDS:
        return escape(text)
    words = {"en": text, "ko": WORDS[text]}
    return "".join(f'<{tag} class="word" lang="{code}">{escape(word)}</{tag}>' for code, word in words.items())


def switch(language: str) -> str:
    """Returns the radio buttons that choose the language, with one chosen."""
    buttons = [
        f'<label><input type="radio" name="language" id="{code}"{" checked" if code == language else ""}>{name}</label>'
        for code, name in LANGUAGES.items()
    ]
    return f'<fieldset class="languages">{"".join(buttons)}</fieldset>'
