"""Text that spells a tokenizer's special token is written so that none takes it for one.

An article about language models may hold `<|endoftext|>`; read as a token, it would end the document there. A space
inside the brackets is enough: `<|eot_id|>` becomes `< |eot_id| >`, `[INST]` becomes `[ INST ]`.
"""

import re

# Llama-3, GPT, Qwen, ChatML: any name between bars, also the full-width bars of DeepSeek.
_BARS = r"<([|｜][^<>\n]{0,200}?[|｜])>"
# Llama-1/2, Gemma, T5 and BERT; `<0x0A>` is a byte of sentencepiece.
_NAMES = (
    r"<(/?(?:s|unk|pad|bos|eos|mask|cls|sep|start_of_turn|end_of_turn|extra_id_[0-9]{1,3}|0x[0-9A-F]{2}|"
    r"</?SYS>))>"
)
_ANGLE = re.compile(f"{_BARS}|{_NAMES}")
# Llama-2 and Mistral chats, BERT.
_SQUARE = re.compile(
    r"\[(/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS|TOOL_CALLS|TOOL_CONTENT|CLS|SEP|MASK|PAD|UNK))\]"
)


def defuse(text: str) -> tuple[str, int]:
    """Returns the text without literal special tokens, and how many there were. Idempotent."""
    angle = square = 0
    if "<" in text:
        text, angle = _ANGLE.subn(lambda match: f"< {match[1] or match[2]} >", text)
    if "[" in text:
        text, square = _SQUARE.subn(r"[ \1 ]", text)
    return text, angle + square
