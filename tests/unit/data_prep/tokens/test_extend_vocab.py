import functools
import io
import json

import pytest
import sentencepiece
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, normalizers

from data_prep.document import CorpusError, Document, as_row, write_jsonl
from data_prep.lineage import sha256_file
from data_prep.tokens import encode, extend_vocab, inspection
from data_prep.tokens.shards import Shards
from data_prep.tokens.tokenizer import load_tokenizer, train_tokenizer
from data_prep.tokens.tokenizer_formats import llama3_special_tokens
from data_prep.tokens.vocab_learning import HANGUL, count_words, learn_merges
from data_prep.tokens.vocab_pieces import new_pieces
from tests.support import SHARED_DATA
from tests.unit.data_prep.tokens.small_corpus import launch, sentencepiece_bpe, write_with_all_merges

ENGLISH = [
    "The river flows through the city and into the sea. Isn't it large? 1234567 people live there!\n",
    "A capital is a city; 'tis where a government sits -- in the middle of a country.\n\n    return x\n",
]
KOREAN = [
    "서울은 대한민국의 수도이다. 한강이 서울을 가로질러 흐르고, 대한민국의 사람들이 산다. ㅋㅋㅋㅋ",
    "대한민국의 강은 바다로 흐르고 바다에는 섬이 있다. K팝(K-pop)은 대한민국의 음악이다. 漢江 漢江",
]
KINDS = ("tiktoken", "tokenizers", "sentencepiece", "tokenizers of Llama-2's kind", "tokenizers with all merges")
NUM_PIECES = 40
ANY = st.one_of(st.text(alphabet="서울은대한민국의강뷁ㅋ ab漢\n.1▁'", max_size=40), st.text(max_size=30))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents")
    texts = [(text * 5, "ko") for text in KOREAN] + [(text * 5, "en") for text in ENGLISH]
    documents = [Document(str(n), text, "made", lang) for n, (text, lang) in enumerate(texts)]
    write_jsonl(folder / "documents-00000.jsonl.zst", map(as_row, documents))
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A tokenizer file of each kind that knows English and next to no Korean."""
    folder = tmp_path_factory.mktemp("bases")
    train_tokenizer([*ENGLISH, "서울 강"] * 3, 610, folder)
    model = sentencepiece_bpe([*ENGLISH, "서울 강"] * 3, 380, allow_whitespace_only_pieces=True)
    (folder / "llama2").mkdir()
    (folder / "llama2" / "tokenizer.model").write_bytes(model)
    llama2_json(model).save(str(folder / "llama2" / "tokenizer.json"))
    (folder / "llama3").mkdir()
    write_with_all_merges(folder / "tokenizer.json", folder / "llama3" / "tokenizer.json")
    files = (
        "tokenizer.model",
        "tokenizer.json",
        "llama2/tokenizer.model",
        "llama2/tokenizer.json",
        "llama3/tokenizer.json",
    )
    return {kind: folder / name for kind, name in zip(KINDS, files, strict=True)}


def llama2_json(data):
    """Returns a sentencepiece BPE model as Llama-2's tokenizer.json has it: every way to join a piece is a merge."""
    model = sentencepiece.SentencePieceProcessor(model_proto=data)
    vocab = {model.id_to_piece(id_): id_ for id_ in range(model.get_piece_size())}
    merges = [
        (-model.get_score(id_), piece[:cut], piece[cut:])
        for piece, id_ in vocab.items()
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab and not model.is_byte(id_) and not model.is_control(id_)
    ]
    bpe = models.BPE(
        vocab, [merge[1:] for merge in sorted(merges)], unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    tokenizer = tokenizers.Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


@pytest.fixture(scope="module")
def made(bases, corpus, tmp_path_factory):
    """The extended tokenizer's folder of each kind."""
    folders = {}
    for kind, base in bases.items():
        folders[kind] = tmp_path_factory.mktemp("made") / "out"
        options = ("--num-pieces", NUM_PIECES, "--multiple-of", 8, "--character-coverage", 1, "--out", folders[kind])
        assert launch(extend_vocab, "extend-vocab", "--tokenizer", base, "--documents", corpus, *options) == 0
    return folders


@pytest.fixture(params=KINDS)
def pair(request, bases, made):
    return load(bases[request.param]), load(made[request.param])


@functools.cache
def load(path):
    return load_tokenizer(path)


def extension_of(tokenizer):
    return json.loads((tokenizer.path.parent / "extension.json").read_text(encoding="utf-8"))


def test_every_old_id_keeps_its_meaning_special_ones_included(pair):
    old, new = pair
    assert [new.piece(id_) for id_ in range(old.vocab_size)] == [old.piece(id_) for id_ in range(old.vocab_size)]
    assert new.special_tokens == old.special_tokens
    assert (new.bos_id, new.eos_id) == (old.bos_id, old.eos_id)
    special = next(iter(old.special_tokens))
    assert new.encode_with_special(f"a{special}b") == old.encode_with_special(f"a{special}b")


def test_the_size_is_the_next_multiple_and_every_new_id_is_used_by_its_own_piece(pair):
    old, new = pair
    assert new.vocab_size % 8 == 0
    assert old.vocab_size + NUM_PIECES <= new.vocab_size < old.vocab_size + NUM_PIECES + 8
    texts = {new.piece(id_) for id_ in range(old.vocab_size, new.vocab_size)}
    assert len(texts) == new.vocab_size - old.vocab_size
    used = {id_ for text in KOREAN for id_ in new.encode(text) if id_ >= old.vocab_size}
    assert len(used) > 10


@given(text=ANY)
def test_every_text_comes_back_as_it_did_from_the_base(bases, made, text):
    for kind in KINDS:
        old, new = load(bases[kind]), load(made[kind])
        assert new.decode(new.encode(text)) == old.decode(old.encode(text))


@given(text=st.text(max_size=60) | st.text(alphabet="the city ab'1\n漢ぁĀꀀ\ua97f\ud7fc", max_size=60))
def test_a_text_without_hangul_has_the_ids_it_had(bases, made, text):
    if not HANGUL.search(text):
        for kind in KINDS:
            assert load(made[kind]).encode(text) == load(bases[kind]).encode(text)


def test_english_documents_keep_their_ids_and_korean_ones_need_fewer(pair):
    old, new = pair
    assert [new.encode(text) for text in ENGLISH] == [old.encode(text) for text in ENGLISH]
    for text in KOREAN:
        assert len(new.encode(text)) < 0.7 * len(old.encode(text))


@given(text=ANY)
def test_tiktoken_and_tokenizers_files_of_one_base_stay_alike(bases, corpus, made, text):
    for kind in ("tokenizers", "tokenizers with all merges"):
        assert load(made["tiktoken"]).encode(text) == load(made[kind]).encode(text)


def test_a_file_that_tiktoken_can_read_stays_one(bases, made):
    assert load(bases["tokenizers with all merges"])._tiktoken is not None
    assert load(made["tokenizers with all merges"])._tiktoken is not None


def test_base_ids_spell_the_new_piece(pair):
    old, new = pair
    facts = extension_of(new)
    assert facts["base"] == {"file": old.path.name, "sha256": old.sha256, "vocab_size": old.vocab_size}
    assert [row["id"] for row in facts["pieces"]] == list(range(old.vocab_size, new.vocab_size))
    for row in facts["pieces"]:
        assert len(row["base_ids"]) > 1
        assert max(row["base_ids"]) < old.vocab_size
        assert row["piece"] == new.piece(row["id"])
        assert old.decode(row["base_ids"]) == new.decode([row["id"]])


def test_tokens_before_and_after_are_counted_by_language(pair):
    old, new = pair
    english, korean = extension_of(new)["tokens"]
    assert (english["lang"], english["documents"]) == ("en", 2)
    assert english["tokens_before"] == english["tokens_after"] == sum(len(old.encode(text * 5)) for text in ENGLISH)
    assert korean["tokens_before"] == sum(len(old.encode(text * 5)) for text in KOREAN)
    assert korean["tokens_after"] == sum(len(new.encode(text * 5)) for text in KOREAN)
    assert korean["tokens_per_document_after"] == korean["tokens_after"] / 2


def test_shards_of_the_base_can_be_read_with_the_extension(bases, made, corpus, tmp_path):
    options = ("--tokenizer", bases["tiktoken"], "--out", tmp_path, "--workers", 1)
    launch(encode, "tokens", "--documents", corpus, *options)
    shards = Shards.open(tmp_path)
    tokenizer = inspection.tokenizer_of(shards, made["tiktoken"])
    assert tokenizer.decode(shards.read(0, 0, int(shards.document_lengths[0]))) == KOREAN[0] * 5


def test_a_second_run_does_nothing_and_other_settings_are_an_error(bases, made, corpus, capsys):
    common = ("extend-vocab", "--tokenizer", bases["tiktoken"], "--documents", corpus, "--character-coverage", 1)
    options = ("--multiple-of", 8, "--out", made["tiktoken"])
    before = sha256_file(made["tiktoken"] / "manifest.json")
    assert launch(extend_vocab, *common, "--num-pieces", NUM_PIECES, *options) == 0
    assert "unchanged, nothing to do" in capsys.readouterr().out
    with pytest.raises(CorpusError, match="made of something else"):
        launch(extend_vocab, *common, "--num-pieces", NUM_PIECES + 1, *options)
    assert sha256_file(made["tiktoken"] / "manifest.json") == before


def test_extending_twice_gives_the_same_file(bases, made, corpus, tmp_path):
    for kind in KINDS:
        options = ("--num-pieces", NUM_PIECES, "--multiple-of", 8, "--character-coverage", 1, "--out", tmp_path / kind)
        launch(extend_vocab, "extend-vocab", "--tokenizer", bases[kind], "--documents", corpus, *options)
        assert sha256_file(load(tmp_path / kind).path) == load(made[kind]).sha256


def test_transformers_loads_the_folder_and_agrees(made, bases):
    transformers = pytest.importorskip("transformers")
    auto, ours = transformers.AutoTokenizer.from_pretrained(made["tokenizers"]), load(made["tokenizers"])
    assert len(auto) == ours.vocab_size
    assert auto.bos_token_id == ours.bos_id
    for text in [*KOREAN, *ENGLISH]:
        assert auto(text, add_special_tokens=False).input_ids == ours.encode(text)
        assert auto.decode(ours.encode(text)) == text
    assert auto.convert_tokens_to_ids(llama3_special_tokens()) == [
        ours.special_tokens[name] for name in llama3_special_tokens()
    ]


def test_sentencepiece_itself_reads_the_extended_model(made):
    model = sentencepiece.SentencePieceProcessor(model_file=str(made["sentencepiece"] / "tokenizer.model"))
    ours = load(made["sentencepiece"])
    for text in [*KOREAN, *ENGLISH]:
        assert model.encode(text) == ours.encode(text)
        assert model.decode(model.encode(text)) == text


def test_rare_characters_stay_bytes(bases, corpus, tmp_path):
    options = ("--num-pieces", 20, "--character-coverage", 0.6, "--out", tmp_path / "out")
    launch(extend_vocab, "extend-vocab", "--tokenizer", bases["sentencepiece"], "--documents", corpus, *options)
    old, new = load(bases["sentencepiece"]), load_tokenizer(tmp_path / "out")
    assert "음" in KOREAN[1]
    assert new.encode("음")[-3:] == old.encode("음")[-3:]
    assert len(new.encode("대")) < len(old.encode("대"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-pieces", 0], "--num-pieces 0; at least 1 is needed"),
        (["--num-pieces", 5, "--multiple-of", 0], "--multiple-of 0; at least 1 is needed"),
        (["--num-pieces", 5, "--character-coverage", 1.5], r"--character-coverage 1\.5; a share above 0 and at most 1"),
        (
            ["--num-pieces", 100_000],
            r"the documents give \d+ new pieces seen twice; 100000 were asked for; give more text",
        ),
        (
            ["--num-pieces", 5, "--character-coverage", 1],
            r"\d+ characters are new, 5 pieces were asked for; there must be",
        ),
    ],
)
def test_options_that_cannot_be_are_errors(bases, corpus, tmp_path, options, message):
    common = ("extend-vocab", "--tokenizer", bases["sentencepiece"], "--documents", corpus, "--out", tmp_path / "out")
    with pytest.raises(CorpusError, match=message):
        launch(extend_vocab, *common, *options)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_unigram_model_is_an_error(corpus, tmp_path):
    model = io.BytesIO()
    lines = iter([*ENGLISH, *KOREAN] * 3)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=model, vocab_size=90, hard_vocab_limit=False, minloglevel=2
    )
    (tmp_path / "unigram.model").write_bytes(model.getvalue())
    common = ("extend-vocab", "--tokenizer", tmp_path / "unigram.model", "--documents", corpus, "--num-pieces", 5)
    with pytest.raises(CorpusError, match=r"unigram.model is no byte-pair encoding over bytes or with byte fallback"):
        launch(extend_vocab, *common, "--out", tmp_path / "out")


def test_an_extension_that_breaks_its_promise_is_an_error(bases, tmp_path):
    train_tokenizer([*reversed(ENGLISH), *KOREAN] * 3, 620, tmp_path)
    with pytest.raises(CorpusError, match=r"\d+ ids of the base mean something else \(first: \[\d+\]\); an extension"):
        extend_vocab.compare(load(bases["tiktoken"]), load_tokenizer(tmp_path), iter([]))


def test_words_are_counted_with_the_space_before_them_and_seldom_ones_forgotten():
    counts = count_words(["서울 서울 river\n서울 (강)", "강 " + "x강" * 100])
    assert counts == {"서울": 2, " 서울": 1, " (강)": 1, "강": 1}
    assert set(count_words(["가 나 가 나 가 나 다"], max_words=3)) == {" 가", " 나"}


def test_merges_are_those_of_byte_pair_encoding_by_hand():
    merges = learn_merges({("a", "b", "c"): 5, ("b", "c"): 4, ("x", "y"): 1}, 5)
    assert merges == [(("b",), ("c",)), (("a",), ("b", "c"))]


def test_korean_wikipedia_needs_fewer_tokens_of_the_real_llama3_file(tmp_path):
    package = pytest.importorskip("llama_models")
    files = sorted((SHARED_DATA / "kowiki-text-2022").glob("*wiki_*"))
    if not files:
        pytest.skip("no shared data")
    texts = [path.read_text(encoding="utf-8")[:200_000] for path in files[:2]]
    write_jsonl(tmp_path / "documents-00000.jsonl.zst", [as_row(Document("1", texts[0], "kowiki", "ko"))])
    base = f"{package.__path__[0]}/llama3/tokenizer.model"
    options = ("--num-pieces", 2000, "--multiple-of", 64, "--out", tmp_path / "out")
    launch(extend_vocab, "extend-vocab", "--tokenizer", base, "--documents", tmp_path, *options)
    old, new = load_tokenizer(base), load_tokenizer(tmp_path / "out")
    held_out = texts[1]
    assert new.vocab_size % 64 == 0
    assert len(new.encode(held_out)) < 0.92 * len(old.encode(held_out))
    assert new.decode(new.encode(held_out)) == held_out
    assert new.special_tokens["<|eot_id|>"] == 128_009


def test_the_old_tokenizer_writes_a_new_piece_with_the_ids_that_it_was_joined_from(pair):
    old, new = pair
    pieces = extension_of(new)["pieces"]
    assert new_pieces(old, new) == {one["id"]: one["base_ids"] for one in pieces}
    for one in pieces:
        assert old.decode(one["base_ids"]).strip() == new.decode([one["id"]]).strip()


def test_a_piece_is_split_as_it_stands_without_a_space_in_front(pair):
    old, _ = pair
    whole = b"river" if isinstance(old.raw(old.vocab_size - 300), bytes) else "river"
    plain, spaced = old.split(whole), old.encode(" river")
    assert old.decode(plain).strip() == "river"
    assert plain != spaced
    assert [old.raw(id_) for id_ in old.special_tokens.values()] == list(old.special_tokens)


def test_new_pieces_of_another_vocabulary_are_refused(bases, made):
    old, new = load(bases["tokenizers"]), load(made["tokenizers"])
    with pytest.raises(
        CorpusError, match=r"token \d+ is .*, in .* it is .* \(\d+ such ids\); an extended voca.* keeps"
    ):
        new_pieces(load(bases["sentencepiece"]), new)
    with pytest.raises(CorpusError, match=r"token 610 is None, in .* it is "):
        new_pieces(new, old)
    with pytest.raises(CorpusError, match=r"has the 610 tokens of .* and no other; new ones are expected"):
        new_pieces(old, old)


def test_a_vocabulary_that_cannot_write_a_piece_is_refused(tmp_path):
    model = sentencepiece_model_pb2.ModelProto.FromString(sentencepiece_bpe(ENGLISH * 3, 380))
    kept = [piece for piece in model.pieces if piece.type != piece.BYTE]
    model.trainer_spec.byte_fallback = False
    del model.pieces[:]
    model.pieces.extend(kept)
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.model").write_bytes(model.SerializeToString())
        model.pieces.add(piece="강은", score=-9999.0)
    with pytest.raises(CorpusError, match=r"is '강은', which .* cannot write \(its ids: \[0"):
        new_pieces(load(tmp_path / "old"), load(tmp_path / "new"))
