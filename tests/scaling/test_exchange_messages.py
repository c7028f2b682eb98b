"""One phase takes as long as its messages, played one by one through both ends; copies inside a node, counted."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from janus_scaling import PROFILES, Exchange

H100 = PROFILES["h100"]
ROW = 10240


def played(orders: list[list[int]], n_e: int, message_s: float) -> float:
    """When the last message has arrived. A sender's messages go in order, each when both ends' interfaces are free
    of those before it; of several that could start, the one that can start first."""
    senders, receivers = [0.0] * len(orders), [0.0] * n_e
    left = [list(order) for order in orders]
    while any(left):
        starts = [(max(senders[s], receivers[order[0]]), s) for s, order in enumerate(left) if order]
        at, s = min(starts)
        senders[s] = receivers[left[s].pop(0)] = at + message_s
    return max(senders)


@pytest.mark.parametrize("gating", ["moe", "attention"])
@pytest.mark.parametrize("seed", range(12))
def test_messages_of_a_device_wait_for_each_other(seed: int, gating: str) -> None:
    rng = np.random.default_rng(seed)
    n_a, n_e = int(rng.integers(1, 25)), int(rng.integers(9, 33))
    tokens = float(rng.uniform(1, 2000))
    exchange = Exchange(row_bytes=ROW, top_k=6, hardware=H100, gating=gating, phases=1)
    share = 1.0 if gating == "moe" else 1 - (1 - 1 / n_e) ** 6
    message_s = tokens / n_a * share * ROW / (H100.network_bandwidth * H100.bandwidth_efficiency)
    message_s += H100.network_latency_s
    way = exchange.seconds(n_a, n_e, tokens) / 2
    if gating == "attention":
        way -= H100.network_latency_s + H100.layer_overhead_s
    # Each sender begins at another receiver. Where senders are more, receivers see them in rounds: the same, turned.
    few, many = sorted((n_a, n_e))
    turned = [[(i + k) % many for k in range(many)] for i in range(few)]
    assert way == pytest.approx(played(turned, many, message_s))
    assert way == pytest.approx(max(n_a, n_e) * message_s)
    in_order = played([list(range(n_e)) for _ in range(n_a)], n_e, message_s)
    assert in_order == pytest.approx((n_a + n_e - 1) * message_s) and in_order >= way * (1 - 1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_copies_inside_a_node_are_those_that_its_instances_need(seed: int) -> None:
    """Of drawn experts on instances anywhere: how many of a node's instances a token goes to."""
    rng = np.random.default_rng(seed)
    nodes, q = int(rng.integers(2, 5)), int(rng.integers(2, 9))
    n_e, tokens = nodes * q, 4000.0
    hosts = rng.integers(0, n_e, (20_000, 6))
    needed = np.zeros((len(hosts), n_e), bool)
    np.put_along_axis(needed, hosts, values=True, axis=1)
    hw = dataclasses.replace(H100, devices_per_node=q, network_bandwidth=1e30)
    free = dataclasses.replace(hw, link_bandwidth=1e30)

    def bytes_(of: str) -> float:
        """What passes the busiest link, out and back."""
        found = []
        for x in (hw, free):
            exchange = Exchange(row_bytes=ROW, top_k=6, hardware=x, gating="attention")
            found.append(
                exchange.seconds(1, n_e, tokens)
                if of == "two phases"
                else exchange.colocated_seconds(n_e, tokens)
            )
        return (found[0] - found[1]) / 2 * hw.link_bandwidth * hw.bandwidth_efficiency

    # One attention worker: all that a MoE node gets is passed on inside it. All at once: each passes on its n_e-th.
    assert bytes_("two phases") == pytest.approx(tokens * ROW * needed[:, :q].sum(1).mean(), rel=0.03)
    assert bytes_("all to all") == pytest.approx(tokens * ROW * needed.sum(1).mean() / n_e, rel=0.03)
