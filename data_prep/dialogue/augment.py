"""The command `augment`: aligned English-Korean dialogues to chat examples in four language patterns.

    python -m data_prep dialogue augment --pairs pairs.jsonl --out chat.jsonl --form-weights en-ko=0.5,ko-en=0.5

Four forms of one dialogue are no four dialogues. `--form-weights` says how often a form is learnt: below 1
that share of its examples is kept, above 1 examples are written again, a crossed form's with another wording
of its wish. Which ones follows from the pair's id: a larger weight only adds. Validation has each form once.
To change shares from run to run instead, write one file a form (`--forms`) and give each a weight in SFT's `data`.
"""

import argparse
import dataclasses
import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep import lineage
from data_prep.dialogue.examples import ChatExample
from data_prep.dialogue.pairs import Pair, pair_fault, read_pairs
from data_prep.document import CorpusError, write_jsonl

FORMS = ("en-en", "ko-ko", "en-ko", "ko-en")  # question-answer
MAX_WEIGHT = 10
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


def add_parser(subparsers: Any) -> None:
    """Adds the command `augment`."""
    parser = subparsers.add_parser("augment", help="aligned dialogues to chat examples in four forms")
    parser.add_argument(
        "--pairs", type=Path, required=True, metavar="FILE.jsonl", help="lines of id, en, ko; or of id, turns"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl", help="chat examples")
    parser.add_argument("--forms", default=",".join(FORMS), help="question-answer, of %(default)s")
    parser.add_argument(
        "--form-weights", default="", metavar="FORM=W,...", help="how often a form is learnt; 1 where not named"
    )
    parser.add_argument("--valid-share", type=float, default=0.0, help="share of the pairs for STEM-valid.jsonl")
    parser.add_argument("--seed", type=int, default=0, help="of the wordings and the split")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Writes the examples of every sound pair, then the ledger as `OUT.manifest.json`.

    Raises:
        CorpusError: an option or a line of the pairs cannot be used, or `--out` is of another run.
    """
    forms, weights = _forms(args)
    config = {"forms": forms, "valid_share": args.valid_share, "seed": args.seed, "form_weights": weights}
    manifest_path = args.out.with_name(args.out.name + ".manifest.json")
    inputs = {"pairs": lineage.sha256_path(args.pairs) if args.pairs.is_file() else None}
    if _is_made(manifest_path, {**inputs, **config}):
        return 0
    rejects: dict[str, str] = {}
    turns: Counter[str] = Counter()
    pairs = list(_sound_pairs(args.pairs, rejects, turns))
    made = list(_examples(pairs, forms))
    first: dict[tuple[str, ...], ChatExample] = {}
    for key, example in made:
        first.setdefault(key, example)
    if not first:
        raise CorpusError(
            f"{args.pairs} gives 0 examples, {len(rejects)} pairs were dropped; see the reasons: {rejects}"
        )
    changes: Counter[str] = Counter()
    parts = _split(list(first.values()), args, weights, changes)
    written = {path.name: write_jsonl(path, map(_as_row, examples)) for path, examples in parts.items()}
    ledger: dict[str, dict[str, Any]] = {
        "pairs": _entry(len(pairs) + len(rejects), len(pairs), Counter(rejects.values())),
        "turns": _entry(turns.pop("in"), sum(len(pair.en) for pair in pairs), turns),
        "examples": {
            **_entry(len(made), written, Counter(duplicate=len(made) - len(first), form_weight=changes["left_out"])),
            **({"copied": changes["copied"]} if changes["copied"] else {}),
        },
    }
    _check_ledger(args.out, ledger)
    facts = {
        "commit": lineage.commit(),
        "inputs": {"pairs": {"path": str(args.pairs), "sha256": inputs["pairs"]}},
        "config": config,
        "ledger": ledger,
        "rejects": rejects,
        "files": {path.name: {"bytes": path.stat().st_size, "sha256": lineage.sha256_file(path)} for path in parts},
    }
    lineage.write_json(manifest_path, facts)
    print(f"{args.out}: {json.dumps(ledger)}")
    return 0


def _split(
    examples: Sequence[ChatExample], args: argparse.Namespace, weights: dict[str, float], changes: Counter[str]
) -> dict[Path, list[ChatExample]]:
    """Returns the files and their examples: a pair goes into one of them by its id, so its forms never part."""
    train: list[ChatExample] = []
    valid: list[ChatExample] = []
    for example in examples:
        if _chance(f"{args.seed}:{example.pair_id}") < args.valid_share:
            valid.append(_with_cue(example, args.seed, 0))  # each form once: weights are for learning
        else:
            train += _weighted(example, weights.get(_form(example), 1.0), args.seed, changes)
    return {args.out: train, **({args.out.with_stem(args.out.stem + "-valid"): valid} if args.valid_share else {})}


def _forms(args: argparse.Namespace) -> tuple[list[str], dict[str, float]]:
    """Returns the forms and the weights that are not 1."""
    forms = args.forms.split(",")
    if unknown := [form for form in forms if form not in FORMS]:
        raise CorpusError(f"--forms {args.forms} names {', '.join(unknown)}; it knows {', '.join(FORMS)}; use these")
    if not 0 <= args.valid_share < 1:
        raise CorpusError(f"--valid-share {args.valid_share}; a share from 0 to below 1 is expected; lower it")
    weights = {}
    for item in filter(None, args.form_weights.split(",")):
        form, _, text = item.partition("=")
        if form not in forms:
            raise CorpusError(f"--form-weights {item}: no form of this run; one of {', '.join(forms)}; mend the name")
        try:
            weights[form] = float(text)
        except ValueError:
            weights[form] = math.nan
        if not 0 < weights[form] <= MAX_WEIGHT:
            raise CorpusError(
                f"--form-weights {item}: {text!r} is no weight above 0 and up to {MAX_WEIGHT}; write {form}=0.5, "
                "or leave the form out of --forms"
            )
    return forms, {form: weight for form, weight in sorted(weights.items()) if weight != 1}


def _sound_pairs(path: Path, rejects: dict[str, str], turns: Counter[str]) -> Iterator[Pair]:
    """Yields the pairs that can be used; the ids of the others go into `rejects` with the reason.

    A last question without an answer, as in dialogues between people, is left out. `turns` counts the
    turns read and dropped, in the language that has more.
    """
    for pair in read_pairs(path):
        turns["in"] += max(len(pair.en), len(pair.ko))
        if len(pair.en) == len(pair.ko) > 1 and len(pair.en) % 2:
            pair = Pair(pair.id, pair.en[:-1], pair.ko[:-1])
            turns["unanswered"] += 1
        if reason := pair_fault(pair):
            rejects[pair.id] = reason
            turns["of_dropped_pairs"] += max(len(pair.en), len(pair.ko))
        else:
            yield pair


def _examples(pairs: Sequence[Pair], forms: Sequence[str]) -> Iterator[tuple[tuple[str, ...], ChatExample]]:
    """Yields each example, its wish for a language not yet in it, with what tells two examples apart."""
    for pair in pairs:
        for form in forms:
            question, answer = form.split("-")
            sides = {"en": pair.en, "ko": pair.ko}
            turns = [sides[answer if number % 2 else question][number] for number in range(len(pair.en))]
            messages = [
                {"role": ("user", "assistant")[number % 2], "content": turn} for number, turn in enumerate(turns)
            ]
            name = f"q_{question}-a_{answer}"
            yield (form, *turns), ChatExample(f"{pair.id}/{name}", messages, pair.id, name, answer)


def _weighted(example: ChatExample, weight: float, seed: int, changes: Counter[str]) -> list[ChatExample]:
    """Returns the example as often as its form's weight says; `changes` counts those left out and copied."""
    share = _chance(f"{seed}:{example.id}:weight")
    times = int(weight) + (share < weight % 1)
    changes["left_out"] += not times
    changes["copied"] += max(0, times - 1)
    copies = [_with_cue(example, seed, number) for number in range(times)]
    return [dataclasses.replace(copy, id=f"{copy.id}/{n}") if n > 1 else copy for n, copy in enumerate(copies, 1)]


def _with_cue(example: ChatExample, seed: int, number: int) -> ChatExample:
    """Returns the example with a wish for the answer's language in its first question, if its form is crossed.

    The wish is drawn by the pair's id; a copy's `number` moves on to the next wording.
    """
    form = _form(example)
    if form not in CUES:
        return example
    opening, cues = example.messages[0]["content"], CUES[form]
    # Not hash(): it differs from process to process.
    drawn = cues.index(random.Random(f"{seed}:{example.pair_id}:{form}").choice(cues))
    opening += (" " if opening.endswith((".", "?", "!", "…")) else "\n") + cues[(drawn + number) % len(cues)]
    return dataclasses.replace(example, messages=[{"role": "user", "content": opening}, *example.messages[1:]])


def _form(example: ChatExample) -> str:
    return example.form.replace("q_", "").replace("a_", "")


def _chance(key: str) -> float:
    """Returns a number from 0 to below 1 that depends on the key alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def _entry(num_in: int, out: Any, dropped: Counter[str]) -> dict[str, Any]:
    return {"in": num_in, "out": out, "dropped": dict(+dropped)}


def _check_ledger(out: Path, ledger: dict[str, dict[str, Any]]) -> None:
    for name, entry in ledger.items():
        num_out = sum(entry["out"].values()) if isinstance(entry["out"], dict) else entry["out"]
        if entry["in"] + entry.get("copied", 0) != num_out + sum(entry["dropped"].values()):
            raise CorpusError(f"{out}: the ledger of {name} does not add up: {entry}; in = out + dropped; report this")


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
