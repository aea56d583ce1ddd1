"""The command `augment`: aligned English-Korean dialogues to chat examples in four language patterns."""

import argparse
import collections
import hashlib
import json
import random
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep import lineage
from data_prep.dialogue.examples import ChatExample, numbered_rows
from data_prep.document import CorpusError, write_jsonl

LANGUAGES = ("en", "ko")
FORMS = ("en-en", "ko-ko", "en-ko", "ko-en")  # question-answer
# The crossed forms ask for the answer's language, in the question's; else one question had two answers.
CUES = {
    "en-ko": (
        "Answer in Korean.",
        "Please answer in Korean.",
        "Please reply in Korean.",
        "Respond in Korean, please.",
        "Can you answer in Korean?",
        "I would like the answer in Korean.",
    ),
    "ko-en": (
        "영어로 답해 주세요.",
        "영어로 대답해 주세요.",
        "답변은 영어로 부탁드려요.",
        "영어로 말해 줄래요?",
        "대답은 영어로 해 주세요.",
        "영어로 답변해 주시면 좋겠어요.",
    ),
}
MIN_HANGUL_SHARE = {"ko": 0.3, "en": 0.0}  # of the letters; Korean answers may hold names or code
MAX_HANGUL_SHARE = {"ko": 1.0, "en": 0.1}
SPECIAL = re.compile(r"<\|[^<>|\s]*\|>|</?s>|<unk>|<pad>|\[/?INST\]|<</?SYS>>")
SILENCE = "__SILENCE__"
SPACED_MARK = re.compile(r"(?<=\S) +(?=[,.!?;:]+(?:\s|$))")
SPACED_CONTRACTION = re.compile(r"(?<=\w) +(n't|'(?:s|m|re|ve|ll|d))\b", re.IGNORECASE)
HANGUL = re.compile(r"[\u1100-\u11ff\u3131-\u318e\ua960-\ua97c\uac00-\ud7a3\ud7b0-\ud7fb]")


@dataclass(frozen=True)
class Pair:
    """One dialogue in both languages; turns alternate between user and assistant."""

    id: str
    en: list[str]
    ko: list[str]


def add_parser(subparsers: Any) -> None:
    """Adds the command `augment`."""
    parser = subparsers.add_parser("augment", help="aligned dialogues to chat examples in four language patterns")
    parser.add_argument("--pairs", type=Path, required=True, metavar="FILE.jsonl", help="lines of id, en, ko")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl", help="chat examples")
    parser.add_argument("--forms", default=",".join(FORMS), help="question-answer, of %(default)s")
    parser.add_argument("--valid-share", type=float, default=0.0, help="share of the pairs for STEM-valid.jsonl")
    parser.add_argument("--seed", type=int, default=0, help="of the wordings and the split")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Writes the examples of every sound pair, then the ledger as `OUT.manifest.json`."""
    forms = args.forms.split(",")
    if unknown := [form for form in forms if form not in FORMS]:
        raise CorpusError(f"--forms {args.forms} names {', '.join(unknown)}; it knows {', '.join(FORMS)}; use these")
    if not 0 <= args.valid_share < 1:
        raise CorpusError(f"--valid-share {args.valid_share}; a share from 0 to below 1 is expected; lower it")
    config = {"forms": forms, "valid_share": args.valid_share, "seed": args.seed}
    manifest_path = args.out.with_name(args.out.name + ".manifest.json")
    inputs = {"pairs": lineage.sha256_path(args.pairs) if args.pairs.is_file() else None}
    if _is_made(manifest_path, {**inputs, **config}):
        return 0
    rejects: dict[str, str] = {}
    pairs = list(_sound_pairs(args.pairs, rejects))
    made = list(_examples(pairs, forms, args.seed))
    first: dict[tuple[str, ...], ChatExample] = {}
    for turns, example in made:
        first.setdefault(turns, example)
    examples = list(first.values())
    if not examples:
        raise CorpusError(
            f"{args.pairs} gives 0 examples, {len(rejects)} pairs were dropped; see the reasons: {rejects}"
        )
    paths = [args.out, args.out.with_stem(args.out.stem + "-valid")] if args.valid_share else [args.out]
    is_valid = [_is_valid_pair(example.pair_id, args.valid_share, args.seed) for example in examples]
    written = {}
    for number, path in enumerate(paths):
        chosen = [example for example, valid in zip(examples, is_valid, strict=True) if valid == bool(number)]
        written[path.name] = write_jsonl(path, map(_as_row, chosen))
    ledger = {
        "pairs": {"in": len(pairs) + len(rejects), "out": len(pairs), "dropped": collections.Counter(rejects.values())},
        "examples": {"in": len(made), "out": written, "dropped": {"duplicate": len(made) - len(examples)}},
    }
    facts = {
        "commit": lineage.commit(),
        "inputs": {"pairs": {"path": str(args.pairs), "sha256": inputs["pairs"]}},
        "config": config,
        "ledger": ledger,
        "rejects": rejects,
        "files": {path.name: {"bytes": path.stat().st_size, "sha256": lineage.sha256_file(path)} for path in paths},
    }
    lineage.write_json(manifest_path, facts)
    print(f"{args.out}: {json.dumps(ledger)}")
    return 0


def repair_spacing(text: str) -> str:
    """Returns text without PersonaChat's spaces: `hello , i 'm ok !` becomes `hello, i'm ok!`."""
    return SPACED_CONTRACTION.sub(r"\1", SPACED_MARK.sub("", text)).strip()


def hangul_share(text: str) -> float | None:
    """Returns the share of Hangul among the letters of a text; None when it has no letters."""
    letters = sum(character.isalpha() for character in text)
    return len(HANGUL.findall(text)) / letters if letters else None


def _sound_pairs(path: Path, rejects: dict[str, str]) -> Iterator[Pair]:
    """Yields the pairs that can be used; the ids of the others go into `rejects` with the reason."""
    seen: dict[str, str] = {}
    for where, row in numbered_rows(path):
        id_, *sides = (row.get(name) for name in ("id", *LANGUAGES))
        is_turns = [isinstance(side, list) and all(isinstance(turn, str) for turn in side) for side in sides]
        if not isinstance(id_, str) or not id_ or not all(is_turns):
            raise CorpusError(f"{where}: {str(row)[:60]}; id, en: [turns] and ko: [turns] are expected; mend the line")
        if id_ in seen:
            raise CorpusError(f"{where}: id {id_!r} stands in {seen[id_]} too; ids must differ; rename one")
        seen[id_] = where
        en, ko = ([repair_spacing(unicodedata.normalize("NFC", turn)) for turn in row[lang]] for lang in LANGUAGES)
        pair = Pair(id_, en, ko)
        reason = _fault(pair)
        if reason:
            rejects[id_] = reason
        else:
            yield pair


def _fault(pair: Pair) -> str | None:
    """Returns why a pair cannot be used."""
    turns = pair.en + pair.ko
    if len(pair.en) != len(pair.ko):
        return "turns_differ"
    if not pair.en or len(pair.en) % 2:
        return "turns_odd"
    if not all(turns):
        return "turn_empty"
    if any(SILENCE in turn for turn in turns):
        return "silence"
    if any(SPECIAL.search(turn) for turn in turns):
        return "special_token"
    for lang, side in zip(LANGUAGES, (pair.en, pair.ko), strict=True):
        # Questions and answers apart: an untranslated answer must not hide behind a long question.
        for speaker in (0, 1):
            share = hangul_share(" ".join(side[speaker::2]))
            if share is not None and not MIN_HANGUL_SHARE[lang] <= share <= MAX_HANGUL_SHARE[lang]:
                return f"not_{lang}"
    return None


def _examples(pairs: Sequence[Pair], forms: Sequence[str], seed: int) -> Iterator[tuple[tuple[str, ...], ChatExample]]:
    """Yields each example with its turns before the cue, which are what tells two examples apart."""
    for pair in pairs:
        sides = {"en": pair.en, "ko": pair.ko}
        for form in forms:
            question, answer = form.split("-")
            turns = [sides[answer if number % 2 else question][number] for number in range(len(pair.en))]
            key = (form, *turns)
            if form in CUES:
                # Not hash(): it differs from process to process.
                cue = random.Random(f"{seed}:{pair.id}:{form}").choice(CUES[form])
                turns[0] += (" " if turns[0].endswith((".", "?", "!", "…")) else "\n") + cue
            messages = [
                {"role": ("user", "assistant")[number % 2], "content": turn} for number, turn in enumerate(turns)
            ]
            name = f"q_{question}-a_{answer}"
            yield key, ChatExample(f"{pair.id}/{name}", messages, pair.id, name, answer)


def _is_valid_pair(pair_id: str, share: float, seed: int) -> bool:
    """Whether a pair is for validation: a function of its id, so that its four forms never part."""
    digest = hashlib.sha256(f"{seed}:{pair_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _is_made(manifest_path: Path, facts: dict[str, Any]) -> bool:
    if not manifest_path.is_file():
        return False
    manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
    old = {"pairs": manifest["inputs"]["pairs"]["sha256"], **manifest["config"]}
    if differing := [name for name in facts if old.get(name) != facts[name]]:
        told = ", ".join(f"{name}: {old.get(name)} there, {facts[name]} now" for name in differing)
        raise CorpusError(f"{manifest_path} is of another run ({told}); remove it or give another --out")
    print(f"{manifest_path.name.removesuffix('.manifest.json')}: unchanged, nothing to do")
    return True


def _as_row(example: ChatExample) -> dict[str, Any]:
    return dict(vars(example))
