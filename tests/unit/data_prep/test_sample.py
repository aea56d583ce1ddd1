"""The shipped sample: particles, facts, dumps, dialogues and what is held out of them."""

import bz2
import re
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path

import pytest

from data_prep.document import CorpusError, read_jsonl
from data_prep.sample.build import build
from data_prep.sample.facts import HERE, Facts, load_facts, read_table
from data_prep.sample.korean import final_consonant, particle, polite
from data_prep.sample.mediawiki import Page, namespace, namespaces, read_pages, write_dump
from data_prep.sample.phrases import named_statements, questions, statements
from data_prep.sample.questions import choose_held
from data_prep.sample.words import Word, capitalise, fill

HANGUL = re.compile(r"[\uac00-\ud7a3\u3131-\u318e]")
DUMPS = [("kowiki-sample", "ko"), ("kowiki-heldout", "ko"), ("enwiki-sample", "en"), ("enwiki-heldout", "en")]


@pytest.fixture(scope="module")
def facts() -> Facts:
    return load_facts()


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    build(folder, 0)
    return folder


def pages_of(folder: Path, name: str) -> list[tuple[int, str, ET.Element]]:
    """Reads each stream at its index offset, as a reader of a real multistream dump does."""
    data = (folder / f"{name}-pages-articles-multistream.xml.bz2").read_bytes()
    index = bz2.decompress((folder / f"{name}-pages-articles-multistream-index.txt.bz2").read_bytes()).decode()
    entries = [line.split(":", 2) for line in index.splitlines()]
    found = {}
    for offset in {int(entry[0]) for entry in entries}:
        stream = bz2.BZ2Decompressor().decompress(data[offset:]).decode()
        for page in ET.fromstring(f"<pages>{stream}</pages>"):
            found[offset, page.findtext("id"), page.findtext("title")] = page
    assert len(found) == len(entries)
    return [(int(number), title, found[int(offset), number, title]) for offset, number, title in entries]


@pytest.mark.parametrize(
    ("word", "wanted", "form"),
    [
        ("서울", "은", "은"),
        ("파리", "은", "는"),
        ("서울", "으로", "로"),
        ("부산", "으로", "으로"),
        ("도쿄", "이", "가"),
        ("금", "과", "과"),
        ("1", "을", "을"),
        ("1", "으로", "로"),
        ("2", "을", "를"),
        ("10", "으로", "으로"),
        ("100", "은", "은"),
        ("0", "이", "이"),
        ("Fe", "으로", "로"),
        ("Al", "으로", "로"),
        ("Mn", "은", "은"),
        ("Rome", "은", "는"),
        ("Berlin", "을", "을"),
        ("워싱턴 D.C.", "은", "는"),
        ("수성 (행성)", "은", "은"),
        ("파리", "도", "도"),
        ("파리", "이다", "이다"),
        ("사자", "으로는", "로는"),
        ("말", "으로는", "로는"),
    ],
)
def test_particle_follows_the_final_sound(word: str, wanted: str, form: str) -> None:
    assert particle(word, wanted) == form


def test_final_consonant_of_nothing_readable_is_empty() -> None:
    assert final_consonant("") == final_consonant("()") == ""


@pytest.mark.parametrize(
    ("plain", "formal"),
    [
        ("나라이다.", "나라입니다."),
        ("아시아에 있다.", "아시아에 있습니다."),
        ("강물이 흐른다.", "강물이 흐릅니다."),
        ("1879년에 태어났다.", "1879년에 태어났습니다."),
        ("풀을 먹는다.", "풀을 먹습니다."),
        ("숲에 산다.", "숲에 삽니다."),
        ("더 높다.", "더 높습니다."),
        ("원자 번호가 더 크다.", "원자 번호가 더 큽니다."),
        ("어디인가요?", "어디인가요?"),
    ],
)
def test_polite_turns_the_plain_ending_formal(plain: str, formal: str) -> None:
    assert polite(plain) == formal


def test_words_bring_articles_plurals_and_links() -> None:
    def link(text: str) -> str:
        return f"[[{text}]]"

    fields = {"name": Word("the Nile", "en", link), "kind": Word("otter", "en"), "gas": Word("noble gas", "en")}
    assert fill("{name} is {kind:a}; {gas:s}; {name:'s}.", "en", fields).startswith(
        "The [[Nile]] is an otter; noble gases"
    )
    assert capitalise("[[Otter|otter]] eats") == "[[Otter|Otter]] eats"
    assert f"{Word('나일강', 'ko', link):은}" == "[[나일강]]은"


def test_every_table_row_is_complete_and_every_attribute_has_six_wordings(facts: Facts) -> None:
    for path in sorted((HERE / "facts").glob("*.tsv")):
        read_table(path)
    assert len(facts.entities) > 700
    assert len({entity.key for entity in facts.entities}) == len(facts.entities)
    for kind in facts.kinds.values():
        for lang in ("ko", "en"):
            assert len(kind.define[lang]) >= 6
            for about in kind.attributes.values():
                assert len(statements(facts, about, lang)) >= 6
                assert named_statements(facts, about, lang)
                assert len(questions(facts, about, lang)) >= 4


def test_names_and_values_are_in_their_language(facts: Facts) -> None:
    for entity in facts.entities:
        assert len(entity.known) >= 2, entity.key
        assert HANGUL.search(entity.name("ko")), entity.key
        for text in [entity.name("en"), *(str(entity.value(name, "en")) for name in entity.known)]:
            assert not HANGUL.search(text), entity.key


def test_a_short_row_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("a\tb\n1\t\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"line 2 .* every column needs a value"):
        read_table(tmp_path / "x.tsv")


def test_pages_are_read_by_their_title_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.wiki"
    path.write_text("@@ 틀:가\nx\n\n@@ 나\ny\nz\n", encoding="utf-8")
    assert read_pages(path) == [Page("틀:가", "x"), Page("나", "y\nz")]
    path.write_text("no title\n", encoding="utf-8")
    with pytest.raises(CorpusError, match="start pages with"):
        read_pages(path)


def test_namespaces_have_the_keys_of_the_real_wikis() -> None:
    assert namespaces("ko")[10] == "틀"
    assert namespaces("ko")[14] == "분류"
    assert namespaces("en")[10] == "Template"
    assert namespace("분류:나라", "ko") == 14
    assert namespace("Template:x", "en") == 10
    assert namespace("2001: A Space Odyssey", "en") == 0


def test_an_odd_title_and_text_survive_the_dump(tmp_path: Path) -> None:
    page = Page('A "b" & <c>: d', "x < y & z\n#x")
    write_dump(tmp_path, "t", "en", [page, Page("E", f"#REDIRECT [[{page.title}]]")])
    (_, title, element), (_, _, other) = pages_of(tmp_path, "t")
    assert (title, element.findtext("revision/text")) == (page.title, page.text)
    assert other.find("redirect").get("title") == page.title


@pytest.mark.parametrize(("name", "lang"), DUMPS)
def test_dump_opens_at_its_index_offsets_and_as_a_whole(sample: Path, name: str, lang: str) -> None:
    pages = pages_of(sample, name)
    whole = ET.fromstring(bz2.decompress((sample / f"{name}-pages-articles-multistream.xml.bz2").read_bytes()))
    assert whole.get("version") == "0.10"
    assert len(whole.findall("{*}page")) == len(pages)
    assert len({number for number, _, _ in pages}) == len({title for _, title, _ in pages}) == len(pages)
    for _, title, page in pages:
        text = page.find("revision/text")
        assert int(text.get("bytes")) == len((text.text or "").encode())
        assert page.findtext("ns") == str(namespace(title, lang))
    if name.endswith("sample"):
        assert len([1 for _, _, page in pages if page.findtext("ns") == "0"]) >= 700


def test_held_out_articles_are_not_in_the_training_dump_and_every_entity_is(sample: Path, facts: Facts) -> None:
    for lang in ("ko", "en"):
        train, held = ({t for _, t, _ in pages_of(sample, f"{lang}wiki-{part}")} for part in ("sample", "heldout"))
        assert len(held) == 40
        assert not train & held
        assert {entity.title(lang) for entity in facts.entities} <= train


def test_a_second_build_is_byte_identical(sample: Path, tmp_path: Path) -> None:
    build(tmp_path, 0)
    names = sorted(path.name for path in sample.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    for name in names:
        assert (sample / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_pairs_are_aligned_and_in_their_language(sample: Path) -> None:
    pairs = list(read_jsonl(sample / "pairs.jsonl"))
    generated = [pair for pair in pairs if not pair["id"].startswith("hand")]
    assert len({pair["id"] for pair in pairs}) == len(pairs)
    assert len(generated) >= 1500
    for pair in generated:
        assert len(pair["en"]) == len(pair["ko"])
        assert len(pair["en"]) % 2 == 0
        assert all(turn.endswith((".", "?")) and "{" not in turn for turn in [*pair["en"], *pair["ko"]]), pair
        assert all(HANGUL.search(turn) for turn in pair["ko"]), pair
        assert not any(HANGUL.search(turn) for turn in pair["en"]), pair
        assert all(turn.endswith("니다.") for turn in pair["ko"][1::2]), pair


def test_a_generated_question_has_one_answer(sample: Path) -> None:
    answers = defaultdict(set)
    for pair in read_jsonl(sample / "pairs.jsonl"):
        if not pair["id"].startswith("hand"):
            for lang in ("ko", "en"):
                answers[pair[lang][0]].add(pair[lang][1])
    assert not [question for question, found in answers.items() if len(found) > 1]


def test_no_dialogue_tells_a_held_out_fact_and_the_articles_do(sample: Path, facts: Facts) -> None:
    pairs = list(read_jsonl(sample / "pairs.jsonl"))
    asked = {turn for pair in pairs for lang in ("ko", "en") for turn in pair[lang][::2]}
    rows = list(read_jsonl(sample / "questions.jsonl"))
    answered = {turn for pair in pairs for lang in ("ko", "en") for turn in pair[lang][1::2]}
    for row in rows:
        assert row["messages"][0]["content"] not in asked
        assert not set(row["answers"]) & answered, row
    hand = list(read_jsonl(HERE / "pairs.jsonl"))
    taken = {page.title for path in (HERE / "articles").glob("*.wiki") for page in read_pages(path)}
    chosen = choose_held(facts, 0, hand, taken)
    assert len([row for row in rows if row["id"].startswith("fact")]) == 2 * len(chosen)
    for lang in ("ko", "en"):
        texts = {title: page.findtext("revision/text") for _, title, page in pages_of(sample, f"{lang}wiki-sample")}
        for entity, name in chosen:
            prose = texts[entity.title(lang)].split("\n}}\n", 1)[1]
            assert str(entity.value(name, lang)).removeprefix("the ").lower() in re.sub(r"\[\[|\]\]", "", prose).lower()


def test_prompts_are_new_and_have_no_answers(sample: Path) -> None:
    pairs = list(read_jsonl(sample / "pairs.jsonl"))
    asked = {turn for pair in pairs for lang in ("ko", "en") for turn in pair[lang][::2]}
    rows = list(read_jsonl(sample / "prompts.jsonl"))
    for lang in ("ko", "en"):
        assert 40 <= len([row for row in rows if row["lang"] == lang]) <= 60
    assert all(row["answers"] == [] and row["messages"][0]["content"] not in asked for row in rows)


def test_another_seed_chooses_otherwise(sample: Path, tmp_path: Path) -> None:
    build(tmp_path, 1)
    assert (sample / "questions.jsonl").read_bytes() != (tmp_path / "questions.jsonl").read_bytes()
