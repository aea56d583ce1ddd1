"""Preflight of several processes, each a node of its own, with faults that are really there."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from tests.support import ROOT, random_shards

pytestmark = pytest.mark.timeout(900)  # a shared machine may take minutes for what takes seconds
SHAPE = {
    "vocab_size": 512,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "embed_dim": 16,
    "intermediate_dim": 32,
    "max_seq_len": 128,
}


def end(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            process.kill()
        process.communicate()


class Nodes:
    """Folders of nodes that share a run folder; each has its own copy of the shards and the configuration."""

    def __init__(self, folder: Path, num: int) -> None:
        self.folder, self.num = folder, num
        self.env: list[dict[str, str]] = [{} for _ in range(num)]
        self.prefix: list[list[str]] = [[] for _ in range(num)]
        self.address, self.bad_nodes = "127.0.0.1", folder / "bad_nodes"
        random_shards(folder / "n1" / "shards", documents=10)
        config = {
            "output_dir": str(folder / "run"),
            "model": SHAPE,
            "data": "shards",
            "seq_len": 64,
            "global_batch_tokens": 512,
            "steps": 6,
            "optimizer": {"lr": 1e-3},
        }
        (folder / "n1" / "cpt.yaml").write_text(yaml.safe_dump(config))
        for number in range(2, num + 1):
            shutil.copytree(folder / "n1", folder / f"n{number}")

    def __getitem__(self, number: int) -> Path:
        """Returns the folder of a node, counted from 1."""
        return self.folder / f"n{number}"

    def start(self, *overrides: str) -> list[subprocess.Popen[str]]:
        """Starts a rank on each node, as srun does."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "slurm.preflight", "--config", "cpt.yaml", "--bad-nodes", str(self.bad_nodes)]
        started = []
        for rank in range(self.num):
            env = {
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
                **{"RANK": str(rank), "WORLD_SIZE": str(self.num), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
                **{"MASTER_ADDR": self.address, "MASTER_PORT": str(port), "SLURMD_NODENAME": f"n{rank + 1}"},
                **self.env[rank],
            }
            words = [*self.prefix[rank], *command, *overrides]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            started.append(subprocess.Popen(words, cwd=self[rank + 1], env=env, **pipes))  # type: ignore[call-overload]
        return started

    def run(self, *overrides: str) -> tuple[int, str]:
        """Returns the exit code, the same of all ranks, and what rank 0 printed."""
        processes = self.start(*overrides)
        try:
            outputs = [process.communicate(timeout=240)[0] for process in processes]
        finally:
            end(processes)
        assert len({process.returncode for process in processes}) == 1, outputs
        return processes[0].returncode, outputs[0]

    def named(self) -> list[str]:
        """Returns what the file of bad nodes says."""
        return self.bad_nodes.read_text().split() if self.bad_nodes.exists() else []


@pytest.fixture
def nodes(tmp_path):
    return Nodes(tmp_path, 3)


@pytest.mark.slow
def test_sound_nodes_pass(nodes):
    nodes.bad_nodes.write_text("n9\n")
    exit_code, out = nodes.run("output_dir=" + str(nodes.folder / "run"))
    assert exit_code == 0, out
    assert "the same on 3 nodes: code, config, tokenizer, data, versions" in out
    assert "3 pairs: " in out
    assert "3 nodes within " in out
    assert "3 nodes see one another's files" in out
    assert "not checked: no GPU" in out
    assert nodes.named() == []  # what an earlier one named is gone
    assert not list((nodes.folder / "run").iterdir())


def test_nodes_with_other_data_and_another_version_are_named(nodes):
    shutil.rmtree(nodes[2] / "shards")
    random_shards(nodes[2] / "shards", documents=10, seed=1)
    metadata = nodes.folder / "packages" / "safetensors-9.9.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: safetensors\nVersion: 9.9\n")
    nodes.env[2]["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(nodes.folder / "packages")])
    exit_code, out = nodes.run()
    assert exit_code == 1
    assert "error: n2: data is not that of most nodes: shards/manifest.json is " in out
    assert "error: n3: versions is not that of most nodes: safetensors is 9.9, not " in out
    assert nodes.named() == ["n2", "n3"]


@pytest.mark.slow
def test_a_node_with_other_code_or_configuration_is_named(nodes):
    for package in ("configs", "data_prep", "recipes", "slurm"):
        shutil.copytree(ROOT / package, nodes.folder / "code" / package)
    shutil.copytree(nodes.folder / "code", nodes.folder / "other")
    with (nodes.folder / "other/recipes/cpt.py").open("a") as file:
        file.write("# another\n")
    for number, code in enumerate(("other", "code", "code")):
        nodes.env[number]["PYTHONPATH"] = str(nodes.folder / code)
    (nodes[3] / "cpt.yaml").write_text((nodes[3] / "cpt.yaml").read_text().replace("steps: 6", "steps: 7"))
    exit_code, out = nodes.run()
    assert exit_code == 1
    assert "error: n1: code is not that of most nodes: recipes/cpt.py is " in out
    assert "error: n3: config is not that of most nodes: steps is 7, not 6" in out
    assert nodes.named() == ["n1", "n3"]


@pytest.mark.slow
def test_a_rank_that_stands_still_is_named_in_time(nodes):
    processes = nodes.start()
    processes[1].send_signal(signal.SIGSTOP)
    try:
        out = processes[0].communicate(timeout=200)[0]
        assert processes[0].returncode == processes[2].wait(30) == 1
    finally:
        end(processes)
    assert re.search(r"ranks +wrong", out)
    assert "no answer of rank 1: started within 60 s was expected" in out
    assert nodes.named() == []  # nobody knows its node's name: it has not said it, and there is no Slurm to ask


@pytest.mark.slow
def test_a_configuration_that_cannot_be_read_is_told_once(nodes):
    exit_code, out = nodes.run("stepz=3")
    assert exit_code == 1
    assert out.count("stepz (command line): unknown key; did you mean 'steps'?") == 1
    assert nodes.named() == []


@pytest.mark.slow
def test_folders_that_are_not_shared_and_too_little_room_are_told(nodes):
    exit_code, out = nodes.run("output_dir=run", "model.embed_dim=16384", "model.num_layers=4000")
    assert exit_code == 1
    assert "error: not all nodes see what n1, n2, n3 write to output_dir; put output_dir on a disk" in out
    assert "GB are free for checkpoints, " in out
    assert nodes.named() == []


@pytest.mark.slow
def test_a_node_whose_disk_is_full_is_named(nodes):
    (nodes[2] / "run").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(nodes[2] / "run")], check=False)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        exit_code, out = nodes.run("output_dir=run")
    finally:
        subprocess.run(["umount", str(nodes[2] / "run")], check=True)
    assert exit_code == 1
    assert "error: n2: cannot write to run: No space left on device; make room" in out
    assert nodes.named() == ["n2"]


CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
int clock_gettime(clockid_t id, struct timespec *now) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(id, now);
    if (id == CLOCK_REALTIME) now->tv_sec += 7;
    return code;
}
"""


@pytest.mark.slow
def test_a_node_whose_clock_is_ahead_is_named(nodes):
    if shutil.which("gcc") is None:
        pytest.skip("no C compiler to build another clock with")
    (nodes.folder / "clock.c").write_text(CLOCK)
    library = nodes.folder / "clock.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(nodes.folder / "clock.c"), "-ldl"], check=True)
    nodes.env[1]["LD_PRELOAD"] = str(library)
    exit_code, out = nodes.run()
    assert exit_code == 1
    assert "error: n2: its clock is off by +7.0" in out
    assert nodes.named() == ["n2"]


def in_namespace(name: str, files: Path) -> list[str]:
    """Words that run a command in a network namespace where no name server is asked."""
    script = f'mount --bind {files}/nsswitch.conf /etc/nsswitch.conf; exec "$@"'
    return ["ip", "netns", "exec", name, "unshare", "--mount", "bash", "-c", script, "-"]


@pytest.fixture
def network(nodes):
    """The nodes in network namespaces of their own, on a bridge."""
    tag = f"k{os.getpid() % 10_000}"
    names = [f"{tag}n{number}" for number in (1, 2, 3)]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        ip("link", "add", f"{tag}br", "type", "bridge")
        ip("link", "set", f"{tag}br", "up")
        for number, name in enumerate(names, start=1):
            ip("netns", "add", name)
            ip("link", "add", f"{tag}v{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", f"{tag}v{number}", "master", f"{tag}br", "up")
            ip("-n", name, "addr", "add", f"10.213.7.{number}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                ip("-n", name, "link", "set", device, "up")
        (nodes.folder / "nsswitch.conf").write_text("hosts: files\n")
        nodes.prefix = [in_namespace(name, nodes.folder) for name in names]
        nodes.env = [{"GLOO_SOCKET_IFNAME": "eth0"} for _ in names]
        nodes.address = "10.213.7.1"
        yield names
    except (subprocess.CalledProcessError, FileNotFoundError):
        pytest.skip("network namespaces are not permitted here")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", f"{tag}br"], check=False, capture_output=True)


@pytest.mark.slow
def test_a_node_behind_a_slow_link_is_named(nodes, network):
    limit = ["tbf", "rate", "20mbit", "burst", "32kbit", "latency", "400ms"]
    words = ["ip", "netns", "exec", network[2], "tc", "qdisc", "add", "dev", "eth0", "root", *limit]
    if subprocess.run(words, check=False, capture_output=True).returncode:
        pytest.skip("the kernel has no traffic control for this")
    exit_code, out = nodes.run()
    assert exit_code == 1
    assert "error: n3: " in out
    assert "GB/s to the fastest of its partners" in out
    assert nodes.named() == ["n3"]
