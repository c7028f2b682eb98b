"""The thread pool: bounded, asleep when idle, usable after fork, by several callers, and when resized."""

from __future__ import annotations

import os
import threading
import time

import pytest
import torch
from janus_kernels import describe, set_num_threads
from janus_kernels.native import NATIVE
from janus_kernels.ops import linear

pytestmark = pytest.mark.skipif(NATIVE is None, reason="needs the compiled kernels")


@pytest.fixture(autouse=True)
def one_thread_after() -> object:
    yield
    set_num_threads(1)


def work(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(9, 256, generator=generator), torch.randn(700, 256, generator=generator)


def threads_alive() -> int:
    return len(os.listdir("/proc/self/task"))


def test_threads_are_bounded_start_late_and_go() -> None:
    set_num_threads(1)
    before = threads_alive()
    set_num_threads(4)
    assert threads_alive() == before
    assert "4 threads" in describe()
    linear(*work())
    assert threads_alive() == before + 3
    set_num_threads(1)
    assert threads_alive() == before


@pytest.mark.parametrize("bad", [0, -1, 1025])
def test_a_wrong_number_is_refused(bad: int) -> None:
    with pytest.raises(ValueError, match=r"1..1024"):
        set_num_threads(bad)


def test_idle_threads_use_no_processor() -> None:
    set_num_threads(4)
    linear(*work())
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.01


def test_threads_wake_again_and_again() -> None:
    set_num_threads(3)
    x, w = work()
    expected = linear(x, w)
    for i in range(300):
        assert torch.equal(linear(x, w), expected)
        if i % 30 == 0:
            time.sleep(0.002)


def test_several_callers_at_once() -> None:
    set_num_threads(3)
    cases = [work(seed) for seed in range(4)]
    expected = [linear(*case) for case in cases]
    wrong: list[int] = []

    def run(i: int) -> None:
        wrong.extend(i for _ in range(150) if not torch.equal(linear(*cases[i]), expected[i]))

    callers = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for size in (1, 4, 2, 3):
        set_num_threads(size)
        time.sleep(0.01)
    for caller in callers:
        caller.join(60)
    assert not wrong and not any(caller.is_alive() for caller in callers)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_computes() -> None:
    set_num_threads(3)
    x, w = work()
    expected = linear(x, w)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(linear(x, w), expected) and "3 threads" in describe() else 1)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    pytest.fail("the child hung")
