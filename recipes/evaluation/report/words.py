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
    "Composition": "데이터 구성",
    "Checkpoints": "체크포인트",
    "Retention": "기존 능력의 유지",
    "Sample generations": "생성 예시",
    "Chat vector": "챗 벡터",
    "Scale sweep": "배율 비교",
    "Commands and versions": "명령과 버전",
    "Settings of the evaluation": "평가 설정",
    "Versions": "버전",
    "More answers": "답변 더 보기",
    "Model": "모델",
    "Run": "학습",
    "Task": "과제",
    "Steps": "스텝",
    "Tokens": "토큰",
    "Processes": "프로세스",
    "Time in steps": "스텝 시간",
    "Waiting for data": "데이터 대기",
    "Tokens/s": "초당 토큰",
    "GPU memory, GiB": "GPU 메모리, GiB",
    "Memory, GiB": "메모리, GiB",
    "Skipped steps": "건너뛴 스텝",
    "Speeds and MFU are medians over the steps.": "속도와 MFU는 스텝별 값의 중앙값입니다.",
    "step": "스텝",
    "scale": "배율",
    "Scale": "배율",
    "Shares of answers": "답변 비율",
    "Rule": "기준",
    "layer": "레이어",
    "attention": "어텐션",
    "trained": "학습",
    "masked": "마스킹",
    "padded": "패딩",
    "skipped": "건너뜀",
    "in": "입력",
    "out": "출력",
    "documents_in": "입력 문서",
    "documents_out": "출력 문서",
    "best checkpoint": "최적 체크포인트",
    "alarm": "경고",
    "ko bits/byte": "한국어 바이트당 비트",
    "en bits/byte": "영어 바이트당 비트",
    "ko kept": "한국어 유지율",
    "en kept": "영어 유지율",
    "Replay": "권장 리플레이 비율",
    "Largest rise of bits per byte that gives no alarm": "경고 없이 허용하는 바이트당 비트 증가",
    "Kept: bits per byte of the base divided by those of the model; 100 % is nothing forgotten, above is a "
    "gain.": "유지율은 베이스의 바이트당 비트를 모델의 값으로 나눈 비율입니다. 100 %면 잊은 것이 없고, 그보다 크면 "
    "나아진 것입니다.",
    "Change beside the target's size, %": "대상 모델 크기 대비 변화량, %",
    "Tensor": "텐서",
    "Change": "변화",
    "Size": "크기",
    "Ratio": "비",
    "Bits per byte, Korean": "바이트당 비트, 한국어",
    "Bits per byte, English": "바이트당 비트, 영어",
    "Ends its turn, Korean prompts": "답변을 끝맺음, 한국어 질문",
    "Ends its turn, English prompts": "답변을 끝맺음, 영어 질문",
    "Korean prompts answered in Korean": "한국어 질문에 한국어로 답함",
    "Exact match": "정답 일치",
    "Exact match, Korean": "정답 일치, 한국어",
    "Exact match, English": "정답 일치, 영어",
    "Answers in a loop, Korean prompts": "반복에 빠진 답변, 한국어 질문",
    "Answers in a loop, English prompts": "반복에 빠진 답변, 영어 질문",
    "Bits per byte": "바이트당 비트",
    "Lower is better for bits per byte and loops, higher for all others. Small figures: the difference from the first "
    "row, and the 95 % confidence interval.": "바이트당 비트와 반복은 낮을수록, 나머지는 높을수록 좋습니다. 작은 "
    "글씨는 첫 행과의 차이와 95 % 신뢰 구간입니다.",
    "A group's score is the mean of its subjects, ± 1.96 standard errors; micro: the mean of its examples.": "묶음 "
    "과제의 점수는 과목 평균이며 ±는 표준 오차의 1.96배입니다. micro는 문항 평균입니다.",
    "Bits per byte of text that no run has trained on.": "어떤 학습에도 쓰지 않은 텍스트의 바이트당 비트입니다.",
    "Arrows point from what was read to what was made.": "화살표는 읽은 것에서 만든 것으로 향합니다.",
    "Recommended scale": "추천 배율",
    "none": "없음",
    "Bold: running mean over a twentieth of the run; pale: every step.": "굵은 선은 전체 길이의 20분의 1에 대한 이동 "
    "평균이고, 옅은 선은 스텝별 값입니다.",
    "epochs": "에폭",
    "pairs": "대화 쌍",
    "turns": "차례",
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
