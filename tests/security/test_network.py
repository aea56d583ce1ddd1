"""Ranks on one machine do not listen on its network."""

import os

import pytest

from recipes.training.distributed import keep_to_this_machine
from tests.support import launch

REPORT = """
import os, pathlib
from recipes.training.distributed import process_group
with process_group("cpu") as world:
    links = pathlib.Path("/proc/self/fd").iterdir()
    own = {os.readlink(link) for link in links if link.is_symlink()}
    for table in ("tcp", "tcp6"):
        for line in pathlib.Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            local, state, inode = (line.split()[column] for column in (1, 3, 9))
            if state == "0A" and f"socket:[{inode}]" in own:
                print(f"rank {world.rank} listens on {local}\\n", end="", flush=True)
"""
LOOPBACK = "0100007F:"


@pytest.fixture
def report(tmp_path):
    path = tmp_path / "report.py"
    path.write_text(REPORT)
    return path


def test_the_ranks_of_one_machine_listen_on_loopback_alone(report):
    command = ["torchrun", "--standalone", "--nproc_per_node", "2", str(report)]
    told = launch(*command).stdout.split()
    addresses = told[4::5]
    assert len(addresses) >= 2
    assert all(address.startswith(LOOPBACK) for address in addresses), addresses


@pytest.mark.parametrize(
    ("ranks", "here", "given", "expected"),
    [
        ("2", "2", None, "lo"),
        ("16", "8", None, None),
        ("2", "2", "eth1", "eth1"),
        (None, None, None, "lo"),
        ("2", None, None, None),
    ],
)
def test_only_a_run_of_one_machine_is_kept_to_it(monkeypatch, ranks, here, given, expected):
    for name, value in {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": here, "GLOO_SOCKET_IFNAME": given}.items():
        monkeypatch.setenv(name, value or "")
        if value is None:
            monkeypatch.delenv(name)
    keep_to_this_machine()
    assert os.environ.get("GLOO_SOCKET_IFNAME") == expected
