"""What a generation leaves: pairs, rejected answers, and the manifest with ledger and cost, written last."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from data_prep import lineage
from data_prep.dialogue.collect import COMPLETE
from data_prep.dialogue.journal import Journal
from data_prep.dialogue.judge import Judge
from data_prep.document import CorpusError, write_jsonl

JOURNAL, PAIRS, REJECTED = "journal.jsonl", "pairs.jsonl", "rejected.jsonl"
FILES = (JOURNAL, PAIRS, REJECTED, lineage.MANIFEST)
# What an answer depends on; a journal holds answers of one kind only.
ASKED = (
    "api", "model", "temperature", "max_tokens", "extra_body", "seed", "system", "prompt", "turns", "styles", "angles",
    "topics",
)  # fmt: skip
JUDGED = ("dialogues", "max_turn_chars", "near_duplicate_threshold", "answers_per_dialogue")
LONGEST_TOLD = 60  # characters of a value in a message


def is_complete(out: Path, cfg: Any) -> bool:
    """Whether the folder holds the finished results of these settings."""
    path = out / lineage.MANIFEST
    if not path.is_file():
        return False
    manifest = json.loads(path.read_text(encoding="utf-8"))
    config = _settings(cfg, (*ASKED, *JUDGED))
    return manifest.get("stopped") == COMPLETE and manifest.get("config") == config


def check_folder(out: Path) -> None:
    """Checks that the folder is new, or a generation's.

    Raises:
        CorpusError: it holds other files.
    """
    if out.exists() and not out.is_dir():
        raise CorpusError(f"{out} is a file; a folder is expected; give another output_dir")
    names = {path.name.removesuffix(".tmp") for path in out.iterdir()} if out.is_dir() else set()
    if names and (foreign := names - set(FILES) or {JOURNAL} - names):
        told = f"holds {sorted(foreign)[0]}" if JOURNAL not in foreign else f"holds files but no {JOURNAL}"
        raise CorpusError(f"{out} {told}; an empty folder is expected; give another output_dir")


def begin_session(out: Path, journal: Journal, cfg: Any, host: str) -> None:
    """Notes the session, and takes away the manifest of an earlier one.

    Raises:
        CorpusError: the journal's answers were asked for in another way.
    """
    asked = _settings(cfg, ASKED)
    for session in journal.sessions:
        if differing := [name for name in asked if session["asked"].get(name) != asked[name]]:
            told = "; ".join(f"{name}: {_told(session['asked'].get(name), asked[name])}" for name in differing)
            raise CorpusError(
                f"{journal.path} is of another run ({told}); the same settings are expected; "
                "use them, or give another output_dir"
            )
    (out / lineage.MANIFEST).unlink(missing_ok=True)
    journal.add_session(endpoint_host=host, commit=lineage.commit(), asked=asked)


def write(out: Path, cfg: Any, journal: Journal, judge: Judge, stopped: str) -> dict[str, Any]:
    """Writes the results and returns the manifest.

    Raises:
        CorpusError: the ledger does not add up, or nothing was kept.
    """
    num_answers = sum(len(answers) for answers in journal.answers.values())
    reasons = Counter(row["reason"] for row in judge.rejected)
    ledger: dict[str, dict[str, Any]] = {
        "dialogues": {"in": judge.num_judged, "out": len(judge.kept), "dropped": dict(judge.dropped.most_common())},
        "answers": {"in": num_answers, "out": len(judge.kept), "dropped": dict(reasons.most_common())},
        "requests": {
            "in": num_answers + journal.failures.total(),
            "out": num_answers,
            "dropped": dict(journal.failures.most_common()),
        },
    }
    for name, entry in ledger.items():
        if entry["in"] != entry["out"] + sum(entry["dropped"].values()):
            raise CorpusError(f"{out}: the ledger of {name} does not add up: {entry}; in = out + dropped; report this")
    write_jsonl(out / PAIRS, judge.kept)
    write_jsonl(out / REJECTED, sorted(judge.rejected, key=lambda row: row["seed"]))
    hosts = sorted({session["endpoint_host"] for session in journal.sessions})
    facts = {
        "stopped": stopped,
        "endpoint_hosts": hosts,
        "models": sorted({answer["model"] for answers in journal.answers.values() for answer in answers}),
        "config": _settings(cfg, (*ASKED, *JUDGED)),
        "ledger": ledger,
        "tokens": dict(journal.tokens),
        "cost": _cost(cfg, journal),
    }
    return lineage.write_manifest(out, {}, **facts)


def progress(cfg: Any, journal: Journal, judge: Judge) -> str:
    """Returns the short form of ledger and cost that runs beside the progress bar."""
    cost = _cost(cfg, journal)
    parts = [f"dropped {judge.dropped.total()}", f"retries {journal.failures.total()}"]
    parts.append(f"tokens {journal.tokens_spent}" + (f"/{cfg.token_budget}" if cfg.token_budget else ""))
    return ", ".join(parts + ([f"cost {cost['total']:.4f}"] if cost else []))


def summary(out: Path, manifest: dict[str, Any]) -> str:
    """Returns the lines a run ends with."""
    ledger, tokens, wanted = manifest["ledger"], manifest["tokens"], manifest["config"]["dialogues"]
    dialogues = ledger["dialogues"]
    lines = [f"{out / PAIRS}: {dialogues['out']} of {wanted} dialogues, {dialogues['in']} asked"]
    lines += [f"{name}: {json.dumps(entry)}" for name, entry in ledger.items()]
    uncertain = tokens.get("uncertain", 0)
    lines.append(
        f"tokens: {tokens.get('in', 0)} in, {tokens.get('out', 0)} out"
        + (f", at most {uncertain} for requests that failed after they were sent" if uncertain else "")
    )
    if cost := manifest["cost"]:
        lines.append(f"cost: {cost['total']:.4f} = {cost['in']:.4f} in + {cost['out']:.4f} out, as price_in, price_out")
    if manifest["stopped"] != COMPLETE:
        todo = {
            "token_budget": "the next request could pass token_budget; raise it and start the same command again",
            "no_more_seeds": "every topic was asked in every style and from every angle; add some under another folder",
        }
        lines.append(f"stopped early ({manifest['stopped']}): {todo[manifest['stopped']]}")
    return "\n".join(lines)


def _cost(cfg: Any, journal: Journal) -> dict[str, float] | None:
    """Returns the cost of the tokens that answers were charged with, in the currency of the prices."""
    if cfg.price_in is None:
        return None
    costs = {name: journal.tokens[name] * getattr(cfg, f"price_{name}") / 1e6 for name in ("in", "out")}
    return {**costs, "total": sum(costs.values())}


def _settings(cfg: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Returns the settings as JSON values, such as the journal gives back."""
    return json.loads(json.dumps({name: getattr(cfg, name) for name in names}, default=vars))


def _told(old: Any, new: Any) -> str:
    texts = json.dumps(old, ensure_ascii=False), json.dumps(new, ensure_ascii=False)
    return "differs" if max(map(len, texts)) > LONGEST_TOLD else f"{texts[0]} there, {texts[1]} now"
