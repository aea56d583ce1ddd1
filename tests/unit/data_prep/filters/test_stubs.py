from data_prep.document import Document
from data_prep.filters.stubs import skeleton


def stub(title: str, text: str) -> int:
    return skeleton(Document("1", text, title=title))


def test_members_of_a_family_differ_in_title_numbers_and_brackets_only() -> None:
    one = stub("루슬", "루슬(프랑스어: Roussel)은 프랑스의 코뮌이다. 넓이는 12.4km2, 인구는 1,234명이다.")
    assert one == stub("마르타 (코뮌)", "마르타는 프랑스의 코뮌이다. 넓이는 7km2, 인구는 89명이다.")
    assert one != stub("루슬", "루슬은 독일의 도시이다. 넓이는 12.4km2, 인구는 1,234명이다.")
    assert one != stub("루슬", "루슬은 프랑스의 코뮌이다. 넓이는 12.4km2, 인구는 1,234명이다. 성당이 유명하다.")


def test_particles_go_with_the_last_sound_of_the_title() -> None:
    assert stub("강산", "강산이 있다. 강산을 보라. 강산과 강산으로.") == stub(
        "바다", "바다가 있다. 바다를 보라. 바다와 바다로."
    )
    assert stub("강산", "강산이 있다.") != stub("강산", "강산을 있다.")


def test_a_title_of_one_letter_is_no_mask() -> None:
    assert stub("가", "가나다의 글이다.") == stub("나", "가나다의 글이다.")


def test_it_is_64_bits_and_the_same_in_every_process() -> None:
    assert stub("루슬", "루슬은 마을이다.") == 0xFD3C337EE92F0645
