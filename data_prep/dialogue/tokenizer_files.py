"""The tokenizer's files of an exported model, with the chat template that it was trained with."""

import shutil
from pathlib import Path

from data_prep.dialogue.chat_template import stored_templates
from data_prep.dialogue.named_templates import OWN, open_template
from data_prep.generation_settings import end_ids
from data_prep.hf_directory import TOKENIZER_FILES
from data_prep.tokens.tokenizer import load_tokenizer


def write_tokenizer(source: Path, folder: Path, chat_template: str) -> tuple[int, list[int]]:
    """Copies the tokenizer's files and adds the chat template.

    Args:
        source: model directory with the tokenizer.
        folder: gets the files.
        chat_template: a name that `open_template` knows; `weights` leaves it at what `source` has, be it none.

    Returns:
        The BOS id, and the ids that end a text: the document's end, that of an answer in the chat template, and what
        else ends one of the source's, as Llama-3.1's end of a message does.

    Raises:
        CorpusError: there is no such template, the tokenizer lacks a token that it writes, or a file is damaged.
    """
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / name)
    tokenizer = load_tokenizer(source)
    special = set(tokenizer.special_tokens.values())
    ends = [tokenizer.eos_id]
    if chat_template != OWN or "default" in stored_templates(source):
        template = open_template(chat_template, tokenizer, source)
        if chat_template != OWN:
            (folder / "chat_template.jinja").write_text(template.template, encoding="utf-8")
        ends += [] if template.end_of_turn is None else [template.end_of_turn]
    ends += [id_ for id_ in end_ids(source) if id_ in special]
    return tokenizer.bos_id, list(dict.fromkeys(ends))
