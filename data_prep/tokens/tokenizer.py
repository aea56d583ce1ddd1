"""Loading a tokenizer, and learning one of Llama-3's kind."""

import base64
import re
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from data_prep.document import CorpusError
from data_prep.lineage import whole_file, write_json
from data_prep.tokens.tokenizer_formats import (
    BEGIN,
    END,
    LLAMA3_SPLIT,
    NUM_SPECIAL,
    TiktokenTokenizer,
    Tokenizer,
    llama3_special_tokens,
    no_tokenizer,
)
from data_prep.tokens.tokenizer_json import HuggingFaceTokenizer, token_bytes
from data_prep.tokens.tokenizer_sentencepiece import SentencePieceTokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Reads a tokenizer; its format is recognised by its content, not its name.

    Args:
        path: a tiktoken, sentencepiece or tokenizer.json file, or a Hugging Face model directory,
            of which tokenizer.json is taken before tokenizer.model and original/tokenizer.model.

    Raises:
        CorpusError: there is no such file, or it is no tokenizer.
    """
    path = Path(path)
    if path.is_dir():
        names = ("tokenizer.json", "tokenizer.model", "original/tokenizer.model")
        found = [path / name for name in names if (path / name).is_file()]
        if not found:
            raise CorpusError(f"{path} holds no tokenizer; one of {', '.join(names)} is expected; copy it there")
        path = found[0]
    if not path.is_file():
        raise CorpusError(f"{path} does not exist; a tokenizer file or model directory is expected; give its path")
    data = path.read_bytes()
    if data.startswith(b"version https://git-lfs"):
        raise no_tokenizer(path, "a Git LFS pointer, so run `git lfs pull`")
    if data.lstrip()[:1] == b"{":
        return HuggingFaceTokenizer(path, data)
    if re.match(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n", data):
        return TiktokenTokenizer(path, data)
    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=data)
    except RuntimeError:
        raise no_tokenizer(path, f"starting with {data[:20]!r}") from None
    return SentencePieceTokenizer(path, data, model)


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path) -> None:
    """Learns a byte-level BPE as Llama-3's and writes it as a Hugging Face folder and as tiktoken ranks.

    Both files encode every text alike: the ranks are the order of the merges, so that what tiktoken may
    join at a rank is what that merge joins.

    Args:
        texts: what to learn from; read once.
        vocab_size: 256 bytes, the merges, and the 256 special tokens at the end.
        folder: gets tokenizer.json, tokenizer.model, tokenizer_config.json and special_tokens_map.json.

    Raises:
        CorpusError: `vocab_size` leaves no room, or the texts do not give so many tokens.
    """
    if vocab_size < 256 + NUM_SPECIAL:
        raise CorpusError(f"vocab_size {vocab_size}; 256 bytes and {NUM_SPECIAL} special tokens are needed; give more")
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(tokenizers.Regex(LLAMA3_SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - NUM_SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    learned = tokenizer.get_vocab_size()
    if learned != vocab_size - NUM_SPECIAL:
        raise CorpusError(f"the texts give {learned + NUM_SPECIAL} tokens; {vocab_size} were asked for; give more text")
    ranks = _ranks_of(tokenizer)
    tokenizer.add_special_tokens(
        [tokenizers.AddedToken(text, normalized=False, special=True) for text in llama3_special_tokens()]
    )
    begin = processors.TemplateProcessing(
        single=f"{BEGIN} $A",
        pair=f"{BEGIN} $A {BEGIN}:1 $B:1",
        special_tokens=[(BEGIN, vocab_size - NUM_SPECIAL)],
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begin])
    folder.mkdir(parents=True, exist_ok=True)
    names = {"bos_token": BEGIN, "eos_token": END}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **names}
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", names)
    lines = b"".join(base64.b64encode(token) + f" {rank}\n".encode() for token, rank in ranks)
    write_bytes(folder / "tokenizer.model", lines)
    write_bytes(folder / "tokenizer.json", tokenizer.to_str(pretty=True).encode())


def _ranks_of(tokenizer: tokenizers.Tokenizer) -> list[tuple[bytes, int]]:
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return [(token_bytes(token), rank) for token, rank in vocabulary]


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file that has its name only when it is whole."""
    with whole_file(path) as partial:
        partial.write_bytes(data)
