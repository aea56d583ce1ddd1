"""Chat templates by name: the formats of published models, a model directory's own, a file.

KULLM's and Alpaca's formats are published for one turn. Here a further turn follows behind the end of the last, and
a system message takes the place of the preamble. Contents are trimmed, so that a prompt is what was trained before
its answer, token by token.
"""

import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from data_prep.dialogue.chat_template import LLAMA3, ChatTemplate, template_tokens
from data_prep.document import CorpusError
from data_prep.tokens.tokenizer_formats import Tokenizer

OWN = "weights"
SPECIAL = re.compile(r"<\|\w+\|>")

# The format of Llama-2-Chat, in which every question opens with BOS. Source: `chat_completion` of Meta's llama.
LLAMA2 = r"""{%- set system = messages[0].content if messages[0].role == 'system' %}
{%- for message in messages %}
    {%- if message.role == 'user' and system is string and loop.index0 == 1 %}
        {%- set content = '<<SYS>>\n' ~ system ~ '\n<</SYS>>\n\n' ~ message.content %}
        {{- bos_token ~ '[INST] ' ~ content | trim ~ ' [/INST]' }}
    {%- elif message.role == 'user' %}
        {{- bos_token ~ '[INST] ' ~ message.content | trim ~ ' [/INST]' }}
    {%- elif message.role == 'assistant' %}
        {{- ' ' ~ message.content | trim ~ ' ' ~ eos_token }}
    {%- endif %}
{%- endfor %}
"""

# Source: templates/kullm.json of nlpai-lab/KULLM.
_KULLM_WORDS = r"""{%- set request = '요청을 적절히 완료하는 응답을 작성하세요.' %}
{%- set preamble = '아래는 작업을 설명하는 명령어입니다. ' ~ request %}
{%- set preamble_input = '아래는 작업을 설명하는 명령어와 추가 컨텍스트를 제공하는 입력이 짝을 이루는 예제입니다. '
    ~ request %}
{%- set instruction, input, response = '### 명령어:\n', '### 입력:\n', '### 응답:\n' %}
"""
# Source: PROMPT_DICT in train.py of tatsu-lab/stanford_alpaca.
_ALPACA_WORDS = r"""{%- set request = ' Write a response that appropriately completes the request.' %}
{%- set preamble = 'Below is an instruction that describes a task.' ~ request %}
{%- set preamble_input = 'Below is an instruction that describes a task, paired with an input that provides further '
    ~ 'context.' ~ request %}
{%- set instruction, input, response = '### Instruction:\n', '### Input:\n', '### Response:' %}
"""
_INSTRUCTION = r"""{%- set system = (messages[0].content if messages[0].role == 'system' else '') | trim %}
{{- bos_token }}
{%- for message in messages if message.role != 'system' %}
    {%- if message.role == 'user' %}
        {%- if loop.first %}
            {{- system or (preamble_input if message.input else preamble) }}
        {%- endif %}
        {{- '\n\n' ~ instruction ~ message.content | trim }}
        {%- if message.input %}
            {{- '\n\n' ~ input ~ message.input | trim }}
        {%- endif %}
        {{- '\n\n' ~ response }}
    {%- else %}
        {{- message.content | trim ~ eos_token }}
    {%- endif %}
{%- endfor %}
"""
KULLM, ALPACA = _KULLM_WORDS + _INSTRUCTION, _ALPACA_WORDS + _INSTRUCTION

# Source: OpenAI's ChatML. The tokenizer must have its two special tokens.
CHATML = r"""{%- for message in messages %}
    {{- '<|im_start|>' ~ message.role ~ '\n' ~ message.content | trim ~ '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""

TEMPLATES = {"llama3": LLAMA3, "llama2": LLAMA2, "kullm": KULLM, "alpaca": ALPACA, "chatml": CHATML}


def name_problems(name: str) -> list[str]:
    """Returns what is wrong with a name that a configuration gives for a template, as far as it tells alone."""
    if name.endswith(".jinja"):
        return [] if Path(name).is_file() else [f"{name} does not exist; give an existing .jinja file"]
    if name in TEMPLATES or name.partition(":")[0] == OWN:
        return []
    return [f"{name!r} is not known; one of {OWN}, {OWN}:NAME, {', '.join(TEMPLATES)}, or the path of a .jinja file"]


def open_template(
    name: str, tokenizer: Tokenizer, folder: Path, now: Callable[[], datetime] = datetime.now
) -> ChatTemplate:
    """Returns the chat template of a name.

    Args:
        name: `weights` for the directory's own, `weights:NAME` for one of its named ones, a key of `TEMPLATES`, or
            the path of a .jinja file.
        tokenizer: of the model directory.
        folder: model directory, whose tokenizer_config.json says what `bos_token` and `eos_token` are.
        now: the clock of templates that write today's date.

    Raises:
        CorpusError: there is no such template, or the tokenizer lacks a token that it writes.
    """
    if problems := name_problems(name):
        raise CorpusError(f"chat_template: {problems[0]}")
    kind, _, own_name = name.partition(":")
    if kind == OWN:
        return ChatTemplate.from_directory(tokenizer, folder, now, own_name or "default")
    source = TEMPLATES[name] if name in TEMPLATES else Path(name).read_text(encoding="utf-8")
    if lacking := sorted(set(SPECIAL.findall(source)) - set(tokenizer.special_tokens)):
        raise CorpusError(
            f"chat_template: {name} writes {', '.join(lacking)}, which are no special tokens of {tokenizer.path}; each "
            "must be one; use another template, or add the tokens to the tokenizer"
        )
    return ChatTemplate(tokenizer, source, template_tokens(folder), now)
