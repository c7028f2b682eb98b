"""What if: each difference from the paper again with one assumption changed, and how much of it that closes.

For bench_simulator. Numbers that an assumption needs are the hardware profile's or are fitted to the published
configurations as the calibration is; none is chosen for what comes out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from janus_scaling import (
    MODELS,
    PROFILES,
    Coefficients,
    Demand,
    Exchange,
    HardwareProfile,
    PerformanceModel,
    StepTime,
    Target,
    roofline,
)
from janus_scaling.fit import Fit, fit_linear
from janus_simulator import Planner
from janus_simulator.paper import CONTEXT, RATIOS, SCALED_DS_2, Calibration, unexplained
from janus_simulator.report import markdown
from simulator_figures import ABLATION, COMPARISONS, TESTBED

H100 = PROFILES["h100"]
Change = Callable[[PerformanceModel], PerformanceModel]
Range = tuple[float, float]
ALONE = "its micro-batches overlap without loss, Janus' do not"


class HostRouter(Exchange):
    """A router on the attention side whose host starts a copy for each instance that rows go to."""

    def seconds(self, n_a: int, n_e: int, tokens: float) -> float:
        starts = n_e * self.hardware.layer_overhead_s if self.gating == "attention" else 0.0
        return Exchange.seconds(self, n_a, n_e, tokens) + starts


class RowPerExpert(Exchange):
    """A router on the attention side that sends a token once for each of its experts, not once to each place."""

    def _spread(self, places: int) -> float:
        return float(self.top_k)


class SameOrder(Exchange):
    """In one phase, all senders go through the receivers in the same order, and queue before each."""

    def _direct(self, n_a: int, n_e: int, b: float, sent: float, bandwidth: float, latency: float) -> float:
        if bandwidth != self._network:
            return Exchange._direct(self, n_a, n_e, b, sent, bandwidth, latency)
        message = b * self._copies(n_e) / n_e * self.row_bytes / bandwidth + latency
        return (n_a + n_e - 1) * message


class NodeInterface(Exchange):
    """One network interface per node, which the messages of all its devices pass one after the other."""

    def seconds(self, n_a: int, n_e: int, tokens: float) -> float:
        if n_a + n_e <= self.hardware.devices_per_node:
            return Exchange.seconds(self, n_a, n_e, tokens)
        a_nodes, e_nodes = self._nodes(n_a), self._nodes(n_e)
        p = -(-n_a // a_nodes)
        b, copies = tokens / n_a, self._copies(n_e if self.phases == 1 else e_nodes)
        leaving = p * b * copies * self.row_bytes / self._network
        arriving = n_a * b * copies / e_nodes * self.row_bytes / self._network
        # What each device does beside it, its starts and copies inside the node, goes on at the same time.
        free = dataclasses.replace(self.hardware, network_bandwidth=1e30)
        plain = Exchange(**{**_fields(self), "hardware": free})
        return 2 * max(leaving, arriving) + plain.seconds(n_a, n_e, tokens)


class Overlapped(PerformanceModel):
    """Micro-batches that overlap without loss: of attention, experts and messages the longest counts."""

    def step(
        self, n_a: int, n_e: int, batch: float, context: float, a_max: float, *, prompt: float = 0.0,
        colocated: bool = False,
    ) -> StepTime:  # fmt: skip
        t = PerformanceModel.step(self, n_a, n_e, batch, context, a_max, prompt=prompt, colocated=colocated)
        c, model = self.coefficients, self.model
        fixed = model.moe_layers * (c.comm_fixed + c.comm_token * (batch + prompt))
        longest = max(t.attention, t.moe, t.comm - fixed)
        # The parts stay as they are, which sizes are chosen by; what is hidden is taken from the exchange.
        return StepTime(t.attention, t.moe, longest + fixed - t.attention - t.moe, t.once)


class TensorParallel(PerformanceModel):
    """Monolithic: each device has a share of the heads and of the experts, and sees all tokens. Two all-reduces a
    layer; the latent cache is whole on each device. What was calibrated per token is paid by each."""

    shared = False
    """Whether the devices share that as they share arithmetic."""

    def step(
        self, n_a: int, n_e: int, batch: float, context: float, a_max: float, *, prompt: float = 0.0,
        colocated: bool = False,
    ) -> StepTime:  # fmt: skip
        t = PerformanceModel.step(self, n_a, n_e, batch, context, a_max, prompt=prompt, colocated=colocated)
        if not colocated:
            return t
        c, hw, model, tokens = self.coefficients, self.exchange.hardware, self.model, batch + prompt
        plain = roofline(model, hw, hw)
        added = (c.alpha - plain.alpha) * tokens / (n_a if self.shared else 1)
        attention = max(c.c_a / n_a, plain.alpha * tokens / n_a + added + c.c_kv * tokens * context)
        nodes, local = -(-n_a // hw.devices_per_node), min(n_a, hw.devices_per_node)
        rows = 2 * tokens * self.exchange.row_bytes / hw.bandwidth_efficiency
        reduce = rows * (local - 1) / local / hw.link_bandwidth + 2 * hw.link_latency_s
        if nodes > 1:
            reduce += rows / local * (nodes - 1) / nodes / hw.network_bandwidth + 2 * hw.network_latency_s
        comm = 2 * (reduce + hw.layer_overhead_s) + c.comm_fixed + c.comm_token * tokens
        return StepTime(model.layers * attention, t.moe, model.moe_layers * comm, t.once)


class TensorParallelShared(TensorParallel):
    """The same, what was calibrated per token shared by the devices."""

    shared = True


def _fields(of: Any) -> dict[str, Any]:
    return {f.name: getattr(of, f.name) for f in dataclasses.fields(of)}


def exchanged(kind: type[Exchange]) -> Change:
    """The exchange of another kind."""
    return lambda p: dataclasses.replace(p, exchange=kind(**_fields(p.exchange)))


def stepped(kind: type[PerformanceModel]) -> Change:
    """Steps of another kind."""
    return lambda p: kind(**_fields(p))


def _starting(hw: HardwareProfile, more_s: float) -> HardwareProfile:
    """Where each message costs ``more_s`` more."""
    link, network = hw.link_latency_s + more_s, hw.network_latency_s + more_s
    return dataclasses.replace(hw, link_latency_s=link, network_latency_s=network)


def on(coefficients: Callable[[Any], Coefficients], start_s: float = 0.0) -> Change:
    """Other coefficients, by model; ``start_s``: what a message's start costs more."""

    def change(p: PerformanceModel) -> PerformanceModel:
        slower = _starting(p.exchange.hardware, start_s)
        return dataclasses.replace(
            p, coefficients=coefficients(p.model), exchange=dataclasses.replace(p.exchange, hardware=slower)
        )

    return change


def bare(model: Any) -> Coefficients:
    """The H100's roofline alone."""
    return roofline(model, H100, H100)


@dataclass(frozen=True, slots=True)
class Refit:
    """The calibration with another assumption, by the same procedure on the same four configurations."""

    text: str
    change: Change
    error: float
    """Relative RMS of TPOT on the four."""


def refits(calibration: Calibration) -> dict[str, Refit]:
    """``constant``: the calibration itself. ``messages``: its constant is paid by each message in series.
    ``exchange``: it multiplies the exchange. ``attention``: a token costs attention what the roofline says, and two
    numbers are fitted."""
    model = MODELS["deepseek-v2"]
    c, points = bare(model), unexplained()

    def exchange(p: Any, more_s: float = 0.0) -> float:
        hw = _starting(H100, more_s)
        return Exchange(row_bytes=model.row_bytes, top_k=model.top_k, hardware=hw).seconds(
            p.n_a, p.n_e, p.batch
        )

    whole = [exchange(p) for p, _ in points]
    own = [max(c.c_a, c.alpha * p.batch / p.n_a) for p, _ in points]
    rest = [r for _, r in points]
    loads = [(p.batch / p.n_a, float(p.batch)) for p, _ in points]

    def fitted(
        names: Sequence[str], terms: list[list[float]], seconds: list[float]
    ) -> tuple[dict[str, float], float]:
        fit: Fit = fit_linear(names, terms, seconds)
        found = {name: fit.coefficients[name].value for name in names}
        off = [
            model.layers * (sum(x * found[n] for n, x in zip(names, row, strict=True)) - s) / p.tpot_s
            for row, s, (p, _) in zip(terms, seconds, points, strict=True)
        ]
        return found, math.sqrt(sum(x * x for x in off) / len(off))

    names = ("first", "token", "all")
    _, k_error = fitted(names, [[1.0, *load] for load in loads], rest)
    m, m_error = {"first": 0.0}, 0.0
    for _ in range(8):  # which messages are in series depends on what a start costs
        at = m["first"]
        many = [(exchange(p, at + 1e-9) - exchange(p, at)) / 1e-9 for p, _ in points]
        fixed = [exchange(p, at) - at * n for (p, _), n in zip(points, many, strict=True)]
        m, m_error = fitted(
            names, [[n, *load] for n, load in zip(many, loads, strict=True)],
            [r + w - f for r, w, f in zip(rest, whole, fixed, strict=True)],
        )  # fmt: skip
    e, e_error = fitted(
        names, [[w, *load] for w, load in zip(whole, loads, strict=True)],
        [r + w for r, w in zip(rest, whole, strict=True)],
    )  # fmt: skip
    a, a_error = fitted(
        ("first", "all"), [[1.0, load[1]] for load in loads], [r - o for r, o in zip(rest, own, strict=True)]
    )
    base = calibration.coefficients

    def scaled(model: Any, found: Mapping[str, float], **more: float) -> Coefficients:
        other = dataclasses.replace(
            calibration, per_token=found["token"], per_token_of_all=found["all"], fixed=0.0
        )
        return dataclasses.replace(other.coefficients(model), **more)

    return {
        "constant": Refit("a constant, as below", on(base), k_error),
        "messages": Refit(
            f"the constant is paid by each message in series ({1e6 * m['first']:.0f} us)",
            on(lambda x: scaled(x, m), m["first"]), m_error,
        ),
        "exchange": Refit(
            f"the constant multiplies the exchange (by {e['first']:.1f})",
            on(lambda x: scaled(x, e, comm_scale=e["first"])), e_error,
        ),
        "attention": Refit(
            "a token costs attention what the roofline says",
            on(lambda x: dataclasses.replace(
                base(x), alpha=bare(x).alpha, comm_fixed=a["first"],
                comm_token=a["all"] * x.hidden / model.hidden,
            )), a_error,
        ),
    }  # fmt: skip


def closes(paper: Range, ours: float, other: float) -> str:
    """How much of the way from ``ours`` to the nearer end of ``paper`` an assumption makes."""
    low, high = paper
    end = min(max(ours, low), high)
    if abs(ours - end) <= 0.05 * abs(end):
        return "no gap"
    if not math.isfinite(other):
        return "-"
    share = (other - ours) / (end - ours)
    if low <= other <= high:
        return "all"
    return "beyond" if share > 1.2 else "away" if share < 0 else f"{share:.0%}"


class Table:
    """Rows: difference, assumption, paper, ours, ours with it, closes."""

    def __init__(self, shown: Callable[[float], str]) -> None:
        self.rows: list[list[str]] = []
        self.shown = shown

    def add(self, difference: str, assumption: str, paper: Range, ours: float, other: float) -> None:
        """One row."""
        ends = dict.fromkeys(self.shown(x) for x in paper if math.isfinite(x))
        said = "-".join(ends) + ("" if math.isfinite(paper[1]) else " or more")
        shown = self.shown(ours), self.shown(other)
        self.rows.append([difference, assumption, said, *shown, closes(paper, ours, other)])


OBJECTIVES = (150, 200)
"""TPOT, ms, of figure 8."""
HEAD = ["difference", "changed assumption", "paper", "ours", "ours with it", "closes"]


def percent(x: float) -> str:
    return f"{x:.0%}" if math.isfinite(x) else "none"


def times(x: float) -> str:
    return f"{x:.1f}x" if math.isfinite(x) else "none"


class Throughput:
    """Figure 8 under changes: janus-aebs over another system, tokens/s/GPU."""

    def __init__(self, made: Mapping[str, Mapping[str, Planner]]) -> None:
        self.made = made
        """By model, then by system."""
        self._known: dict[Any, dict[int, float]] = {}

    def each(self, model: str, system: str, change: Change | None, batch: int) -> dict[int, float]:
        """tokens/s/GPU of what the system chooses within the testbed, by objective; 0: nothing."""
        key = model, system, change, batch
        if key not in self._known:
            planned = self.made[model][system]
            if change:
                planned = planned.timed(change(planned.performance))
            self._known[key], best = {}, None
            for ms in sorted(OBJECTIVES, reverse=True):
                # What a looser objective chose, the stricter one does too where it meets it.
                if best is None or best.tpot_s > ms / 1e3:
                    target = Target(tpot_s=ms / 1e3)
                    best = (
                        planned.under(target)
                        .plan(Demand(tokens_per_s=0, context=CONTEXT), batch=batch)
                        .chosen
                    )
                fits = best is not None and best.workers <= TESTBED
                self._known[key][ms] = best.tokens_per_s_per_worker if best and fits else 0.0
        return self._known[key]

    def ratio(
        self,
        system: str,
        change: Change | None,
        models: Sequence[str],
        batches: Sequence[int],
        *,
        both: bool = True,
    ) -> float:
        """The largest over models, batches and objectives; NaN: never both. Without ``both``, Janus stays as it is."""
        found = []
        for m in models:
            for b in batches:
                janus = self.each(m, "janus-aebs", change if both else None, b)
                other = self.each(m, system, change, b)
                found += [janus[ms] / other[ms] for ms in OBJECTIVES if janus[ms] and other[ms]]
        return max(found, default=math.nan)


def throughput_rows(made: Mapping[str, Mapping[str, Planner]], refit: Mapping[str, Refit]) -> Table:
    """Figure 8, and monolithic systems at a large batch."""
    seen, table, batches = Throughput(made), Table(times), (16, 64, 256, 512)
    tensor = (
        (
            "SGLang tensor-parallel; a token's calibrated time shared by its GPUs",
            stepped(TensorParallelShared),
        ),
        ("SGLang tensor-parallel; a token's calibrated time paid by each GPU", stepped(TensorParallel)),
    )
    common = (("the roofline alone", on(bare)), (refit["messages"].text, refit["messages"].change))
    attention = (refit["attention"].text, refit["attention"].change)
    router = (
        ("a router beside attention: the host starts a copy per instance", exchanged(HostRouter)),
        ("a router beside attention: a row per expert", exchanged(RowPerExpert)),
    )
    overlap = (ALONE, stepped(Overlapped))
    order = ("one phase: senders in the same order", exchanged(SameOrder))
    for system, changes in (
        ("sglang", (*common, attention, *tensor)),
        ("megascale", (*common, attention, *router, order, overlap)),
        ("xdeepserve", (*common, attention, *router, overlap)),
    ):
        paper = RATIOS[system], RATIOS[system]
        ours = seen.ratio(system, None, list(made), batches)
        for text, change in changes:
            other = seen.ratio(system, change, list(made), batches, both=text != ALONE)
            table.add(f"8: over {system}, most", text, paper, ours, other)
    ours = seen.ratio("sglang", None, ["deepseek-v2"], (512,))
    for text, change in (*common, attention, *tensor):
        other = seen.ratio("sglang", change, ["deepseek-v2"], (512,))
        table.add("8: DeepSeek-V2 over sglang, B = 512", text, (1.0, math.inf), ours, other)
    return table


def scaled_rows(made: Mapping[str, Planner], refit: Mapping[str, Refit]) -> Table:
    """Figure 10: the mean of the six cells."""
    table = Table(percent)

    def below(change: Change | None, both: bool = True) -> float:
        found = []
        for n_a in (4, 8):
            steps = []
            for name in ("janus-aebs", "megascale"):
                other = change if both or name == "megascale" else None
                planned = made[name].timed(other(made[name].performance)) if other else made[name]
                steps.append(planned.step_seconds(n_a, 16))
            found += [1 - steps[0](b, 0, CONTEXT) / steps[1](b, 0, CONTEXT) for b in (64, 256, 512)]
        return sum(found) / len(found)

    ours = below(None)
    for text, change in (
        ("the roofline alone", on(bare)), (refit["messages"].text, refit["messages"].change),
        (refit["exchange"].text, refit["exchange"].change), (refit["attention"].text, refit["attention"].change),
        ("a router beside attention: the host starts a copy per instance", exchanged(HostRouter)),
        ("a router beside attention: a row per expert", exchanged(RowPerExpert)),
        ("one phase: senders in the same order", exchanged(SameOrder)),
        ("a network interface per node", exchanged(NodeInterface)),
        (ALONE, stepped(Overlapped)),
    ):  # fmt: skip
        table.add("10: Scaled-DS-2, mean of the cells", text, SCALED_DS_2, ours, below(change, text != ALONE))
    return table


def ablation_rows(
    variants: Mapping[str, Planner], skewed: Mapping[str, Planner], refit: Mapping[str, Refit]
) -> Table:
    """Figure 12. ``skewed``: on other routing."""
    table, gains, plain = Table(percent), Table(lambda x: f"{round(x, 2) + 0.0:+.0%}"), on(bare)

    def then(change: Change) -> Change:
        return lambda p: change(plain(p))

    def value(
        comparison: int, batch: int, change: Change | None, made: Mapping[str, Planner] = variants,
        sizes: tuple[int, int] = ABLATION, against: str = "",
    ) -> float:  # fmt: skip
        _, first, second, _ = COMPARISONS[comparison]
        speed = []
        for name in (first, against or second):
            planned = made[name].timed(change(made[name].performance)) if change else made[name]
            speed.append(batch / planned.step_seconds(*sizes)(batch, 0, CONTEXT))
        return speed[0] / speed[1]

    r, host, row = "roofline: ", "the host starts a copy per instance", "a row per expert"
    for i, (text, _, _, said) in enumerate(COMPARISONS):
        for batch, paper in said.items():
            calibrated, ours = value(i, batch, None), value(i, batch, plain)
            found = [
                ("the roofline alone, not the calibrated times", calibrated, ours),
                (refit["messages"].text, calibrated, value(i, batch, refit["messages"].change)),
            ]
            for what, kind, at in (
                ("a network interface per node", NodeInterface, 0), ("senders in the same order", SameOrder, 0),
                (host, HostRouter, 1), (row, RowPerExpert, 1),
            ):  # fmt: skip
                if i == at:
                    found.append((r + what, ours, value(i, batch, then(exchanged(kind)))))
            if i == 0:
                found.append((r + "8A24E, the whole testbed", ours, value(i, batch, plain, sizes=(8, 24))))
            if i == 2:
                other = value(i, batch, plain, against="2PC + EGate, random")
                found.append((r + "over a random replica instead", ours, other))
                found.append(
                    (r + "the more skewed routing (a_max, below)", ours, value(i, batch, plain, skewed))
                )
            # Of the last two the paper gives gains.
            into, less = (gains, 1.0) if i else (table, 0.0)
            for what, before, after in found:
                ends = (paper[0] - less, paper[1] - less)
                into.add(f"12: {text}, B = {batch}", what, ends, before - less, after - less)
    table.rows += gains.rows
    return table


def markdown_of(*tables: Table) -> str:
    """All rows in one."""
    return markdown([HEAD, *(row for t in tables for row in t.rows)])
