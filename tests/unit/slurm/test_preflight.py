"""What preflight makes of what the nodes measured: who differs, who is slow, whose clock is off."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm import preflight
from slurm.preflight import Check, Report, examine, silent_nodes
from slurm.preflight_facts import judge_facts
from slurm.preflight_meeting import Finding, Here, Meeting, majority
from slurm.preflight_network import ALL_PAIRS, judge_clock, judge_network, offset, rounds
from slurm.preflight_node import judge_disk, judge_gpu, judge_sharing, matmul_tflops, parse_gpu
from slurm.preflight_share import slow_nodes

NODES = ["n1", "n2", "n3", "n4"]


def here(*nodes):
    return Here(rank=0, size=len(nodes), local_rank=0, local_size=1, node=nodes[0], nodes=list(nodes))


def told(findings):
    return [finding.line() for finding in findings]


@given(st.integers(1, 40))
def test_rounds_pair_no_node_twice_and_leave_no_node_out(num_nodes):
    found = rounds(num_nodes)
    for pairs in found:
        used = list(itertools.chain(*pairs))
        assert len(used) == len(set(used))
    pairs = [tuple(sorted(pair)) for pair in itertools.chain(*found)]
    if num_nodes <= ALL_PAIRS:
        assert sorted(pairs) == list(itertools.combinations(range(num_nodes), 2))
    else:
        assert {node for pair in pairs for node in pair} == set(range(num_nodes))
        assert len(found) < 6 * num_nodes.bit_length()


@given(st.floats(-100, 100), st.lists(st.tuples(st.floats(0, 0.5), st.floats(0, 0.5)), min_size=1, max_size=20))
def test_the_clock_is_told_within_what_is_said_to_be_sure(ahead, delays):
    samples, now = [], 1000.0
    for there, back in delays:
        samples.append((now, now + there + ahead, now + there + back))
        now += there + back
    seconds, unsure = offset(samples)
    assert abs(seconds - ahead) <= unsure + 1e-6
    assert unsure <= min(sum(delay) for delay in delays) / 2 + 1e-6


def test_a_clock_that_is_off_is_named_but_a_slow_answer_is_not():
    rows = {0: {"offsets": {"1": (0.01, 0.001), "2": (-3.5, 0.001), "3": (4.0, 3.5)}}, 1: {}, 2: {}, 3: {}}
    assert told(judge_clock(rows, here(*NODES))[1]) == [
        "n3: its clock is off by -3.50 s, 1 are allowed; have its time service (chrony) mended"
    ]
    rows[0]["offsets"]["2"] = (-0.9, 0.001)
    summary, findings = judge_clock(rows, here(*NODES))
    assert not findings
    assert summary.startswith("4 nodes within ")


def test_the_clock_of_the_first_node_can_be_the_wrong_one():
    rows = {0: {"offsets": {"1": (9.0, 0.01), "2": (9.0, 0.01)}}}
    assert [finding.node for finding in judge_clock(rows, here("n1", "n2", "n3"))[1]] == ["n1"]


def test_of_two_clocks_none_is_blamed():
    findings = judge_clock({0: {"offsets": {"1": (9.0, 0.01)}}}, here("n1", "n2"))[1]
    assert [(finding.node, finding.problem) for finding in findings] == [
        (None, "the clocks of n1 and n2 differ by 9.00 s, 1 are allowed")
    ]


def facts(code="a" * 64, torch="2.13.0"):
    return {"code": {"recipes/training/loop.py": code}, "versions": {"torch": torch}}


def test_the_node_that_differs_from_most_is_named_with_what_differs():
    rows = {0: facts(), 1: facts(code="b" * 64), 2: facts(), 3: facts(torch="2.12.0")}
    summary, findings = judge_facts(rows, here(*NODES))
    assert summary == "differ"
    assert [finding.line() for finding in findings] == [
        "n2: code is not that of most nodes: recipes/training/loop.py is bbbbbbbbbbbb, not aaaaaaaaaaaa; "
        "let all nodes see the same checkout, as slurm.submit's snapshot on a shared disk",
        "n4: versions is not that of most nodes: torch is 2.12.0, not 2.13.0; "
        "install the same versions on all nodes, as by one virtual environment on a shared disk",
    ]


def test_of_two_that_differ_none_is_blamed():
    findings = judge_facts({0: facts(), 1: facts(torch="2.12.0")}, here("n1", "n2"))[1]
    assert findings[0].node is None
    assert findings[0].problem == "versions differs between n1 and n2: torch is 2.12.0, not 2.13.0"


def test_only_the_first_rank_of_a_node_speaks_for_it():
    assert here("n1", "n1", "n2", "n2").leaders == [0, 2]
    assert not judge_facts({0: facts(), 1: {}, 2: facts(), 3: {}}, here("n1", "n1", "n2", "n2"))[1]


@pytest.mark.parametrize(("values", "expected"), [("aab", "a"), ("ab", None), ("abc", None), ("bbba", "b"), ("a", "a")])
def test_majority_is_more_than_half(values, expected):
    assert majority(dict(enumerate(values))) == expected


@given(st.lists(st.floats(1, 100), min_size=3, max_size=30), st.floats(0.01, 1))
def test_a_slow_node_is_below_the_share_of_the_median_and_never_most_are(rates, share):
    named = {finding.node for finding in slow_nodes(dict(enumerate(rates)), share, "GB/s", "mend it")}
    assert len(named) <= len(rates) / 2
    assert rates.index(max(rates)) not in named


def test_a_node_is_slow_below_the_share_and_not_merely_below_the_median():
    assert slow_nodes({"n1": 10.0, "n2": 5.0, "n3": 12.0}, 0.5, "GB/s", "mend it") == []
    (finding,) = slow_nodes({"n1": 10.0, "n2": 4.9, "n3": 12.0}, 0.5, "GB/s", "mend it")
    assert finding.line() == "n2: 4.9 GB/s, the median is 10 and 50% of it are expected; mend it"
    assert slow_nodes({"n1": 10.0, "n2": 1.0}, 0.5, "GB/s", "mend it") == []


def pairs(num_nodes, slow, rate=10e9, slow_rate=1e9):
    """What the nodes measure when the link of one is slow."""
    return {
        rank: {
            "pairs": [
                [other, 50e-6, slow_rate if slow in (rank, other) else rate]
                for other in range(num_nodes)
                if other != rank
            ],
            "all_reduce": slow_rate,
        }
        for rank in range(num_nodes)
    }


def test_a_slow_link_is_told_by_the_best_of_its_pairs():
    summary, findings = judge_network(pairs(4, slow=2), here(*NODES), 0.5)
    assert told(findings) == [
        "n3: 1 GB/s to the fastest of its partners, the median is 10 and 50% of it are expected; "
        "have its link looked at (cable, switch port, driver), and leave it out meanwhile"
    ]
    assert summary == "6 pairs: 1.00 to 10.00 GB/s, 50 us; all-reduce of 4 ranks: 1.00 GB/s"
    assert not judge_network(pairs(4, slow=9), here(*NODES), 0.5)[1]


def test_a_node_without_answers_is_named_and_not_those_that_waited_for_it():
    rows = {rank: {"pairs": [], "error": "timed out", "partner": 3} for rank in range(3)}
    rows[3] = {"pairs": [], "error": "timed out", "partner": 0}
    findings = judge_network(rows, here(*NODES), 0.5)[1]
    assert [(finding.node, finding.problem) for finding in findings] == [("n4", "3 nodes get no answer from it")]


def disk(rate=500e6, free=10e9, needed=1e9):
    return {"rate": rate, "free": free, "needed": needed}


def test_disks():
    assert not judge_disk({0: disk(), 1: disk()}, here("n1", "n2"), 0.1)[1]
    full = judge_disk({0: disk(needed=25e9), 1: disk(needed=25e9)}, here("n1", "n2"), 0.1)[1]
    assert told(full) == [
        "10.000 GB are free for checkpoints, 25.000 GB are needed (keep_checkpoints + 1); "
        "make room, lower keep_checkpoints, or set another output_dir"
    ]
    slow = judge_disk({0: disk(), 1: disk(), 2: disk(rate=1e6)}, here("n1", "n2", "n3"), 0.1)[1]
    assert [finding.node for finding in slow] == ["n3"]
    error = {"error": "cannot write to /run: No space left on device"}
    one = judge_disk({0: disk(), 1: error, 2: disk()}, here("n1", "n2", "n3"), 0.1)[1]
    assert [(finding.node, finding.problem) for finding in one] == [("n2", error["error"])]
    every = judge_disk({0: error, 1: error}, here("n1", "n2"), 0.1)[1]
    assert [finding.node for finding in every] == [None]


def test_folders_that_are_not_shared():
    rows = {0: {"unseen": [2]}, 1: {"unseen": [2]}, 2: {"unseen": [0, 1]}}
    assert [finding.node for finding in judge_sharing(rows, here("n1", "n2", "n3"))[1]] == ["n3"]
    every = {0: {"unseen": [1]}, 1: {"unseen": [0]}}
    findings = judge_sharing(every, here("n1", "n2"))[1]
    assert told(findings) == [
        "not all nodes see what n1, n2 write to output_dir; put output_dir on a disk that all nodes share"
    ]


def test_gpus_are_judged_by_errors_heat_use_and_rate():
    good = {"name": "H100", "celsius": 50.0, "mib": 4.0, "ecc": 0.0, "slowed": False, "tflops": 700.0}
    rows = {0: good, 1: good | {"ecc": 2.0}, 2: good | {"celsius": 91.0, "mib": 9000.0}, 3: good | {"tflops": 300.0}}
    lines = told(judge_gpu(rows, here(*NODES), 0.8)[1])
    assert lines[0].startswith("n2: the GPU of rank 1 has 2 uncorrected memory errors; have the node drained")
    assert lines[1].startswith("n3: the GPU of rank 2 has 91 C, 85 are allowed")
    assert lines[2].startswith("n3: the GPU of rank 2 holds 9,000 MiB of other processes; end them")
    assert lines[3].startswith("n4: 300 TFLOP/s in bf16 of its slowest GPU, the median is 700")
    assert len(lines) == 4
    assert judge_gpu({0: {}, 1: {}}, here("n1", "n2"), 0.8) == ("not checked: no GPU", [])


def test_nvidia_smi_is_read_and_what_a_gpu_does_not_know_left_out():
    text = "NVIDIA H100 80GB HBM3, 34, 4, 0, Not Active\n"
    assert parse_gpu(text) == {
        "name": "NVIDIA H100 80GB HBM3", "slowed": False, "celsius": 34.0, "mib": 4.0, "ecc": 0.0
    }  # fmt: skip
    assert parse_gpu("GeForce, 60, 900, [N/A], Active\n") == {
        "name": "GeForce", "slowed": True, "celsius": 60.0, "mib": 900.0
    }  # fmt: skip


def test_the_rate_of_a_matrix_product_is_positive_on_any_device():
    import torch

    assert matmul_tflops(torch.device("cpu"), size=64, repeats=2) > 0


def test_silent_ranks_are_named_once_a_node():
    lines = told(silent_nodes([2, 3], here("n1", "n1", "n2", "n2"), "disk within 20 s"))
    assert lines == [
        "n2: no answer of rank 2: disk within 20 s was expected; leave its node out, and have it looked at"
    ]


def test_the_report_tells_what_is_wrong_and_whom_to_leave_out(capsys):
    report = Report()
    report.add("disk", 1.25, "fine", [])
    report.add("clocks", 0.5, "n2 is off", [Finding("n2", "its clock is off", "mend it"), Finding(None, "x", "y")])
    report.print(2, 16)
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "preflight of 16 ranks on 2 nodes: 1.8 s"
    assert out[1].split() == ["disk", "ok", "1.2", "s", "fine"]
    assert out[2].split()[:2] == ["clocks", "wrong"]
    assert out[3:] == ["error: n2: its clock is off; mend it", "error: x; y", "leave out: n2"]


@pytest.mark.parametrize(
    ("measured", "bad"),
    [
        ([{"n2": True}, {}], []),  # a busy moment
        ([{"n2": True}, {"n3": True}], []),
        ([{"n2": True, "n3": True}, {"n3": True}], ["n3"]),
        ([{"n2": False}], ["n2"]),  # no rate: it is not measured again
        ([{"n2": False, "n3": True}], ["n2", "n3"]),
    ],
)
def test_a_rate_must_be_low_twice(monkeypatch, measured, bad):
    left = iter(measured)

    def judge(rows, here):
        return "told", [Finding(node, "slow", "mend it", is_rate) for node, is_rate in rows[0].items()]

    monkeypatch.setattr(preflight, "checks", lambda share, meeting: [Check("disk", 1, lambda here: next(left), judge)])
    report, alone = Report(), here("n1")
    assert examine(alone, Meeting(alone, 1), 0.5, "", report) == bool(bad)
    assert report.bad_nodes == bad
    assert list(left) == []
