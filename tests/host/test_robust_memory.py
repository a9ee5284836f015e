"""A real server over many prompts, in every way in which it keeps outputs: its main memory stays flat.

The prompts are the templates, with few steps and another seed every time. In the suite 40 of them in the host's own
choice, after as many that fill the caches; with BOXWRIGHT_FULL=1 200 in each.
"""

import os
import sys
from pathlib import Path

import many_prompts
import psutil
import pytest
from wb_environment import host_at
from wb_server import running_server

FULL = bool(os.environ.get("BOXWRIGHT_FULL"))
# The server's option for each way; without any it is RAM pressure, with which nothing of earlier prompts is kept.
CACHES = {
    "ram": (),
    "none": ("--cache-none",),
    "classic": ("--cache-classic",),
    "lru": ("--cache-lru", "40"),
    "ram, short": ("--cache-ram", "100000", "100000"),  # GB to be left free: nor is anything of the prompt itself kept
}
FIRST, THEN = (44, 200) if FULL else (40, 40)  # prompts before and after the first look
EVERY = 20  # prompts between two looks
PER_PROMPT = 0.25  # MiB that one prompt may add
ROUNDS = 3  # at most: the allocator may take more in one step and keep it, and then the next is flat; a leak goes on


def resident(server):
    """Main memory of the server's process, in MiB."""
    return psutil.Process(server.process.pid).memory_info().rss / 2**20


@pytest.mark.parametrize("cache", list(CACHES) if FULL else ["ram"])
def test_a_server_needs_no_more_memory_after_many_prompts(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("BOXWRIGHT_CACHE", str(tmp_path))
    host = host_at(Path(os.environ["COMFYUI_PATH"]), "COMFYUI_PATH")
    with running_server(Path(sys.executable), host, extra=CACHES[cache]) as server:
        graphs = many_prompts.endless(server.get_json("/object_info"))
        for _ in range(FIRST):
            many_prompts.run(server, next(graphs))
        for number in range(ROUNDS):
            seen = [resident(server)]
            for _ in range(THEN // EVERY):
                for _ in range(EVERY):
                    many_prompts.run(server, next(graphs))
                seen.append(resident(server))
            after = FIRST + number * THEN
            print(f"{cache}: after {after} prompts and then every {EVERY}:", *(f"{mib:.0f}" for mib in seen), "MiB")
            if min(seen[-2:]) - seen[0] < PER_PROMPT * THEN:
                return
    pytest.fail(f"{cache}: in each of {ROUNDS} rounds more than {PER_PROMPT} MiB a prompt, in the last {seen}")
