"""The tokenizer of an export: its files where transformers and llama.cpp look for them, and the ids these give."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from configs.loader import UserError
from data_prep.dialogue.chat_template import ChatTemplate, stored_templates, template_tokens
from data_prep.dialogue.messages import Message, UnusableExample
from data_prep.dialogue.named_templates import OWN, open_template
from data_prep.dialogue.tokenizer_files import write_tokenizer
from data_prep.tokens.tokenizer import TiktokenTokenizer, Tokenizer, load_tokenizer

TEXTS = (
    "대한민국의 수도는 서울이며, 한강이 도시를 가로질러 흐른다.",
    "세종대왕은 1443년에 훈민정음을 창제하였다. 자음 14개와 모음 10개가 오늘날 쓰인다.",
    "The Han River flows through Seoul, the capital of South Korea.",
    "2024년 1월 1일, 서울(Seoul)의 기온은 -3.5°C였다. It didn't snow!\n\n  def f(x):\n\treturn x",
)


class ExportError(UserError):
    """The written directory is not the model that was trained, or is not used as it was."""


def tokenizer_source(cfg: DictConfig, trained: DictConfig) -> Path:
    """Returns the directory whose tokenizer the model gets."""
    return Path(cfg.tokenizer or trained.weights)


def template_name(cfg: DictConfig, trained: DictConfig) -> str:
    """Returns the name of the chat template that the model gets."""
    return str(trained.get("chat_template") or OWN) if cfg.chat_template == "keep" else str(cfg.chat_template)


def chat_template(cfg: DictConfig, trained: DictConfig) -> ChatTemplate | None:
    """Returns the template, None of a model without one."""
    name, source = template_name(cfg, trained), tokenizer_source(cfg, trained)
    if name == OWN and "default" not in stored_templates(source):
        return None
    return open_template(name, load_tokenizer(source), source)


def write_tokenizer_files(cfg: DictConfig, trained: DictConfig, folder: Path) -> tuple[int, list[int], dict[str, int]]:
    """Writes the tokenizer's files and the chat template.

    Tiktoken's ranks go where Meta has them, `original/tokenizer.model`, as llama.cpp's converter takes a
    tokenizer.model beside the weights for sentencepiece's.

    Returns:
        The BOS id, the ids that end a text or an answer, and `pad_token_id` where the tokenizer names one.
    """
    bos_id, end_ids = write_tokenizer(tokenizer_source(cfg, trained), folder, template_name(cfg, trained))
    ranks, tokenizer = folder / "tokenizer.model", load_tokenizer(folder)
    if (folder / "tokenizer.json").is_file() and ranks.is_file() and _is_tiktoken(ranks):
        (folder / "original").mkdir(exist_ok=True)
        ranks.replace(folder / "original" / ranks.name)
    pad = tokenizer.special_tokens.get(template_tokens(folder).get("pad_token", ""))
    return bos_id, end_ids, {} if pad is None else {"pad_token_id": pad}


def _is_tiktoken(file: Path) -> bool:
    return isinstance(load_tokenizer(file), TiktokenTokenizer)


def check_tokenizer(folder: Path, tokenizer: Tokenizer, template: ChatTemplate | None) -> list[list[int]]:
    """Checks that transformers' tokenizer and chat template give the ids of the training; returns those of some texts.

    Args:
        folder: the written directory.
        tokenizer: that the run was given.
        template: of the chats, None of a base model.

    Raises:
        ExportError: they do not, or transformers cannot read the files.
    """
    theirs = _load_tokenizer(folder)
    texts = [_check_ids(folder, tokenizer, theirs, text) for text in TEXTS]
    return texts + (_check_chats(folder, template, theirs)[:1] if template else [])


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ExportError(
            f"{folder}: transformers cannot read the tokenizer: {' '.join(str(error).split())[:200]}; tokenizer.json, "
            "or sentencepiece's tokenizer.model, is expected; give a directory that has it as tokenizer=..."
        ) from None


def _check_ids(folder: Path, tokenizer: Tokenizer, theirs: Any, text: str) -> list[int]:
    ours = tokenizer.encode(text)
    found = theirs.encode(text, add_special_tokens=False)
    if found != ours:
        raise ExportError(
            f"{folder}: transformers' tokenizer gives {_first_change(ours, found)} for {text!r}; the ids of the "
            "training are expected; give the tokenizer files of the model it started from as tokenizer=..."
        )
    return [tokenizer.bos_id, *ours]


def _check_chats(folder: Path, template: ChatTemplate, theirs: Any) -> list[list[int]]:
    """Returns the ids of the chats, which are those of transformers."""
    question = {"role": "user", "content": "대한민국의 수도는 어디인가요?"}
    answered = [question, {"role": "assistant", "content": "서울입니다."}, {"role": "user", "content": "Really?"}]
    dialogues: list[list[Message]] = [
        [question],
        answered,
        [{"role": "system", "content": "짧게 답하세요."}, *answered],
    ]
    chats = []
    for messages in dialogues:
        try:
            ours = template.prompt(messages)
        except UnusableExample:
            continue  # the template takes no system message
        found = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        if found != ours:
            roles = ", ".join(one["role"] for one in messages)
            raise ExportError(
                f"{folder}: transformers' apply_chat_template gives {_first_change(ours, found)} for the roles "
                f"{roles}; the ids of the training are expected; name its template as chat_template=..., and a "
                "directory with all special tokens as tokenizer=..."
            )
        chats.append(ours)
    return chats


def _first_change(ours: Sequence[int], found: Sequence[int]) -> str:
    place = next((i for i, (one, other) in enumerate(zip(ours, found, strict=False)) if one != other), None)
    if place is None:
        return f"{len(found)} ids, not {len(ours)},"
    return f"id {found[place]}, not {ours[place]}, at place {place}"
