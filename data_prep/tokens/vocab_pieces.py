"""What an extended vocabulary has beside its base's pieces, and which of the base's stand for each new one."""

from data_prep.document import CorpusError
from data_prep.tokens.tokenizer_formats import Tokenizer


def new_pieces(old: Tokenizer, new: Tokenizer) -> dict[int, list[int]]:
    """Returns, for each id that only `new` has, the ids of `old` by which that writes its piece, in order.

    Args:
        old: of the weights.
        new: the same vocabulary with more pieces, whoever added them.

    Raises:
        CorpusError: an id of the old one has become something else, nothing is new, or `old` cannot write a piece.
    """
    before, after = ([one.raw(id_) for id_ in range(one.vocab_size)] for one in (old, new))
    after += [None] * (len(before) - len(after))
    moved = [id_ for id_, raw in enumerate(before) if raw is not None and raw != after[id_]]
    if moved:
        raise CorpusError(
            f"{new.path}: token {moved[0]} is {after[moved[0]]!r}, in {old.path} it is {before[moved[0]]!r} "
            f"({len(moved)} such ids); an extended vocabulary keeps every token of its base; extend the tokenizer that "
            "lies beside the weights, or name the weights that it was made for"
        )
    before += [None] * (len(after) - len(before))
    found = {id_: old.split(raw) for id_, raw in enumerate(after) if raw is not None and before[id_] is None}
    if not found:
        raise CorpusError(
            f"{new.path} has the {old.vocab_size} tokens of {old.path} and no other; new ones are expected; give the "
            "tokenizer that `python -m data_prep extend-vocab` wrote"
        )
    specials = set(old.special_tokens.values())
    for id_, pieces in found.items():
        if not pieces or specials & {*pieces}:
            raise CorpusError(
                f"{new.path}: token {id_} is {after[id_]!r}, which {old.path} cannot write (its ids: {pieces}); a "
                "vocabulary over bytes or with byte fallback can write anything; use one"
            )
    return found
