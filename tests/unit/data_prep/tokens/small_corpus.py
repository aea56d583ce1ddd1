"""Four documents, a command's launch without a process, and tokenizer files of known shape."""

import argparse
import io
import json

import sentencepiece

from data_prep.document import Document

DOCUMENTS = [
    Document("1", "한강은 서울을 지나 서해로 흐른다.", "wiki", "ko", "한강"),
    Document("2", "A text without a title.", "web", "en"),
    Document("3", "서울은 수도이다. " * 50, "wiki", "ko", "서울"),
    Document("4", "river", "wiki", "en"),
]


def launch(module, *arguments):
    parser = argparse.ArgumentParser()
    module.add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(list(map(str, arguments)))
    return args.run(args)


def write_with_all_merges(path, out):
    """Writes the tokenizer.json with every way to join each token, as Meta's ranks are converted."""
    content = json.loads(path.read_text(encoding="utf-8"))
    vocab = content["model"]["vocab"]
    splits = [(token, cut) for token in vocab for cut in range(1, len(token))]
    ways = [(vocab[t], vocab[t[:c]], t[:c], t[c:]) for t, c in splits if t[:c] in vocab and t[c:] in vocab]
    content["model"]["merges"] = [list(way[2:]) for way in sorted(ways)]
    out.write_text(json.dumps(content), encoding="utf-8")


def sentencepiece_bpe(lines, vocab_size, **options):
    """Returns a model of Llama-2's shape: BPE with byte fallback, <unk> <s> </s> first."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        **options,
    )
    return model.getvalue()
