"""When to change sizes: up at once, down only when it has been right for a while and pays. State in, state out.

What is wanted is the solver's answer at each decision. Going up follows it. Going down goes to the largest size
wanted within the last ``hold_s``, size by size, and only once what the surplus has cost since it arose exceeds the
price of the change: never more than twice what the best hindsight would have paid, and at zero traffic the floor
is reached whatever the price. Hysteresis lies in the two together: a demand that swings faster than ``hold_s``
changes nothing after its first peak.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from janus_scaling.checks import ScalingError, number, whole

Sizes = tuple[int, int]
"""(n_a, n_e)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerState:
    """Sizes in force and what the next decision needs to remember."""

    sizes: Sizes
    wanted: tuple[tuple[float, Sizes], ...] = ()
    """Answers within ``hold_s``, oldest first."""
    surplus: tuple[float, float] = (0.0, 0.0)
    """Per pool, what workers beyond those wanted have cost since they became too many."""
    at_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One step: what to have now, and why."""

    sizes: Sizes
    add: Sizes
    """Workers to add to each pool."""
    drain: Sizes
    """Workers to drain from each pool."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Controller:
    """The rules. Raises ScalingError."""

    floor: Sizes = (1, 1)
    ceiling: Sizes = (64, 64)
    hold_s: float = 300.0
    """How long a smaller size must have sufficed."""
    change_price: float = 0.0
    """Cost of draining one worker and starting it again, in the unit of ``prices`` (an hour's)."""
    prices: tuple[float, float] = (1.0, 1.0)
    """Price of an attention and of a MoE worker for an hour."""
    max_step: int = 4096
    """Most workers that a decision adds to or drains from a pool."""

    def __post_init__(self) -> None:
        for pool in range(2):
            whole("floor", self.floor[pool], 1, 4096)
            whole("ceiling", self.ceiling[pool], self.floor[pool], 4096)
            number("prices", self.prices[pool], 0, float("inf"), above=True)
        number("hold_s", self.hold_s, 0, 1e9)
        number("change_price", self.change_price, 0, 1e9)
        whole("max_step", self.max_step, 1, 4096)

    def start(self, sizes: Sizes | None = None) -> ControllerState:
        """Before the first decision."""
        return ControllerState(sizes=self._clip(sizes or self.floor))

    def decide(
        self, state: ControllerState, now_s: float, wanted: Sizes | None
    ) -> tuple[ControllerState, Decision]:
        """The next sizes.

        Args:
            wanted: the solver's answer to the demand now; None: nothing within bounds meets the target.

        Raises ScalingError when time runs backwards.
        """
        if state.at_s is not None and now_s < state.at_s:
            raise ScalingError("now_s", now_s, f"{state.at_s} or later")
        passed = 0.0 if state.at_s is None else now_s - state.at_s
        want = self.ceiling if wanted is None else self._clip(wanted)
        held = (*((t, s) for t, s in state.wanted if t > now_s - self.hold_s), (now_s, want))
        most = tuple(max(s[pool] for _, s in held) for pool in range(2))
        sizes, surplus, why = [0, 0], [0.0, 0.0], []
        for pool, name in enumerate(("attention", "moe")):
            have = state.sizes[pool]
            extra = have - most[pool]
            surplus[pool] = (
                state.surplus[pool] + extra * self.prices[pool] * passed / 3600 if extra > 0 else 0.0
            )
            goal = have
            if want[pool] > have:
                goal = min(want[pool], have + self.max_step)
                why.append(f"{name} {have} -> {goal}: {want[pool]} needed")
            elif extra > 0 and surplus[pool] >= self.change_price * extra:
                goal, surplus[pool] = max(most[pool], have - self.max_step), 0.0
                why.append(f"{name} {have} -> {goal}: {most[pool]} sufficed for {self.hold_s:g} s")
            elif extra > 0:
                price = self.change_price * extra
                why.append(
                    f"{name} stays {have}: surplus cost {surplus[pool]:.3g} so far, the change {price:.3g}"
                )
            elif have > want[pool]:
                why.append(f"{name} stays {have}: {most[pool]} needed within the last {self.hold_s:g} s")
            sizes[pool] = goal
        if wanted is None:
            why.insert(0, "no size within bounds meets the target: the largest")
        made = sizes[0], sizes[1]
        decision = Decision(
            sizes=made,
            add=(max(0, made[0] - state.sizes[0]), max(0, made[1] - state.sizes[1])),
            drain=(max(0, state.sizes[0] - made[0]), max(0, state.sizes[1] - made[1])),
            reason="; ".join(why) or "as needed",
        )
        after = replace(state, sizes=made, wanted=held, surplus=(surplus[0], surplus[1]), at_s=now_s)
        return after, decision

    def _clip(self, sizes: Sizes) -> Sizes:
        a, e = (min(self.ceiling[p], max(self.floor[p], sizes[p])) for p in range(2))
        return a, e
