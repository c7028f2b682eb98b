"""Every test of an op runs over every backend that this machine has; schedules are judged by a maximum flow."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import pytest
import torch
from janus_kernels import ReplicaLayout, triton
from janus_kernels.native import NATIVE
from janus_kernels.ops import use_backend


def _instruction_sets() -> list[str]:
    """Those that this processor runs, the best last."""
    if NATIVE is None:
        return []
    best, found = NATIVE.instruction_set(), []
    for name in ("portable", "avx2", "avx512"):
        try:
            NATIVE.use_instruction_set(name)
            found.append(name)
        except ValueError:  # this processor lacks it
            continue
    NATIVE.use_instruction_set(best)
    return found


INSTRUCTION_SETS = _instruction_sets()


# Here, while tests are collected: its interpreter must be there before anything else imports Triton.
TRITON = triton.unavailable()
if TRITON is None:
    triton.load()


_CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    ],
)


@pytest.fixture(params=["torch", "triton", *INSTRUCTION_SETS, _CUDA])
def compute(request: pytest.FixtureRequest) -> Iterator[str]:
    """What the ops compute with during a test.

    Plain torch, the compiled kernels of an instruction set, Triton's interpreter on CPU tensors, or Triton on a
    GPU: then tensors that the test makes are there, and their device alone picks the backend.
    """
    if request.param == "cuda":
        with torch.device("cuda"):
            yield request.param
        return
    if request.param in ("torch", "triton"):
        if request.param == "triton" and (TRITON is not None or not triton.interpreted()):
            pytest.skip(TRITON or "there is a GPU, so Triton compiles; TRITON_INTERPRET=1 interprets instead")
        with use_backend(request.param):
            yield request.param
        return
    assert NATIVE is not None
    NATIVE.use_instruction_set(request.param)
    yield request.param
    NATIVE.use_instruction_set(INSTRUCTION_SETS[-1])
    NATIVE.set_num_threads(1)


@pytest.fixture
def threads(compute: str) -> list[int]:
    """Numbers of threads to try: only the compiled kernels share work between threads.

    None for Triton's interpreter: tests that see none also make fewer calls.
    """
    return {"torch": [1], "triton": [], "cuda": [1]}.get(compute, [2, 3, 1])


@pytest.fixture
def instruction_sets() -> list[str]:
    """Those that this processor runs, the best last."""
    return INSTRUCTION_SETS


TRITON_QUICK = ["test_pages_by_column[triton-7-16-8-2-33-40-torch.bfloat16"]
TRITON_SLOW = [
    "test_pages_by_column[triton", "test_pages_by_column_over_several_chunks[triton",
    "test_linear[triton-(40, 2100, 12)", "test_swiglu_ffn[triton-torch.float32]",
    "test_contexts_longer_than_a_chunk[triton", "test_any_grouping_of_heads[triton-40-1",
    "test_any_grouping_of_heads[triton-4-4", "test_mixed_batches[triton-None",
    "test_mixed_batches[triton-1-", "test_mixed_batches[triton-7-torch.bfloat16", "test_attention_sinks[triton",
    "test_any_grouping_of_heads[triton-9-3", "test_latent_attention_reads_values_from_keys[triton-torch.float32",
    "test_route[triton-RoutingSpec(top_k=24",
    "test_route[triton-RoutingSpec(top_k=6, scoring='softmax', renormalize=False, s",
    "test_limits[triton", "test_follows_the_distribution[triton", "test_ties_and_forbidden_tokens[triton",
    "test_backends_draw_the_same_tokens[triton", "test_depends_on_seed_and_index_alone[triton",
    "test_expert_ffn[triton-20-3-2-1100-130", "test_expert_ffn[triton-90-2-1-64-48",
    "test_expert_ffn[triton-23-8-3-72-50-torch.float32", "test_biases_and_activations[triton-30-64-48-torch.float32",
    "test_biases_and_activations[triton-3-40-19-torch.bfloat16",
]  # fmt: skip


class Dinic:
    """Maximum flow over a graph of edges with whole capacities."""

    def __init__(self, nodes: int) -> None:
        self.edges: list[list[int]] = [[] for _ in range(nodes)]
        self.to: list[int] = []
        self.room: list[int] = []

    def add(self, source: int, target: int, capacity: int) -> None:
        for a, b, c in ((source, target, capacity), (target, source, 0)):
            self.edges[a].append(len(self.to))
            self.to.append(b)
            self.room.append(c)

    def flow(self, source: int, sink: int) -> int:
        total = 0
        while True:
            level = [-1] * len(self.edges)
            level[source] = 0
            queue = deque([source])
            while queue:
                node = queue.popleft()
                for edge in self.edges[node]:
                    if self.room[edge] and level[self.to[edge]] < 0:
                        level[self.to[edge]] = level[node] + 1
                        queue.append(self.to[edge])
            if level[sink] < 0:
                return total
            unused = [iter(edges) for edges in self.edges]
            while self._push(source, sink, level, unused):
                total += 1

    def _push(self, source: int, sink: int, level: list[int], unused: list) -> bool:  # type: ignore[type-arg]
        """One unit along a shortest path, without recursion: paths are as long as there are instances."""
        path: list[int] = []
        node = source
        while node != sink:
            for edge in unused[node]:
                if self.room[edge] and level[self.to[edge]] == level[node] + 1:
                    path.append(edge)
                    node = self.to[edge]
                    break
            else:
                if node == source:
                    return False
                level[node] = -1
                node = self.to[path.pop() ^ 1]
        for edge in path:
            self.room[edge] -= 1
            self.room[edge ^ 1] += 1
        return True


def _least_a_max(active: list[int], layout: ReplicaLayout) -> int:
    """The smallest cap on every instance with which each active expert still finds a host."""
    low, high = -(-len(active) // layout.num_instances), len(active)
    while low < high:
        cap = (low + high) // 2
        graph = Dinic(2 + len(active) + layout.num_instances)
        for i, expert in enumerate(active):
            graph.add(0, 2 + i, 1)
            for host in layout.hosts[expert]:
                graph.add(2 + i, 2 + len(active) + host, 1)
        for g in range(layout.num_instances):
            graph.add(2 + len(active) + g, 1, cap)
        if graph.flow(0, 1) == len(active):
            high = cap
        else:
            low = cap + 1
    return low


@pytest.fixture(scope="session")
def least_a_max() -> Callable[[list[int], ReplicaLayout], int]:
    """The least possible a_max by Dinic's maximum flow: exact, and nothing like the algorithm it judges."""
    return _least_a_max


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Triton's interpreter takes seconds where others take milliseconds: float16 and the large are for `slow`."""
    for item in items:
        arguments = getattr(item, "callspec", None)
        if arguments is None or arguments.params.get("compute") != "triton":
            continue
        slow = any(name in item.nodeid for name in TRITON_SLOW) and not any(
            name in item.nodeid for name in TRITON_QUICK
        )
        if slow or torch.float16 in arguments.params.values():
            item.add_marker(pytest.mark.slow)
