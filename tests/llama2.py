"""Tokenizers of Llama-2's kind, small: a sentencepiece BPE, and the same as the tokenizer.json that lies beside it."""

import io
import json
from pathlib import Path

import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers

from tests.support import TEXTS

SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
WORDS = [
    "아래는 작업을 설명하는 명령어입니다. 요청을 적절히 완료하는 응답을 작성하세요. ### 명령어: ### 입력: ### 응답:",
    "Below is an instruction that describes a task. Write a response. ### Instruction: ### Input: ### Response:",
    "[INST] <<SYS>> What is one plus two? <</SYS>> [/INST] It is three.",
]


def llama2_sentencepiece(folder: Path, vocab_size: int = 480) -> Path:
    """Trains `tokenizer.model` with byte fallback and without normalisation, in a Hugging Face layout."""
    folder.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((TEXTS + WORDS) * 10),
        model_writer=model,
        vocab_size=vocab_size,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": True, "add_bos_token": True, **SPECIAL}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def llama2_json(folder: Path, source: Path) -> Path:
    """Writes the sentencepiece model of `source` as the tokenizer.json that Llama-2's repositories have."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    pieces = [model.id_to_piece(id_) for id_ in range(model.get_piece_size())]
    vocab = {piece: id_ for id_, piece in enumerate(pieces)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab and not piece.startswith("<")
    ]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True, dropout=None)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([tokenizers.AddedToken(text, special=True) for text in SPECIAL.values()])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **SPECIAL}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
