"""Advice to split steps: it follows the measured times, with a margin, and asks ever more seldom."""

from __future__ import annotations

import random

from janus_moe.lanes import LaneAdvisor


class Cohort:
    """Steps of one load, followed by workers as they are: ``whole`` and ``split`` seconds each."""

    def __init__(self, whole: float, split: float, *, waited: float = 0.5, noise: float = 0.02) -> None:
        self.times = {False: whole, True: split}
        self.waited, self.noise = waited, noise
        self.advisor = LaneAdvisor()
        self.rng = random.Random(1)
        self.follow = True
        self.advice = False

    def run(self, steps: int, tokens: int = 64) -> int:
        """Steps of these that were split."""
        count = 0
        for _ in range(steps):
            split = self.advice and self.follow
            seconds = self.times[split] * self.rng.uniform(1 - self.noise, 1 + self.noise)
            self.advice = self.advisor.split  # what is said in a step is of the one before it
            self.advisor.observe(tokens=tokens, split=split, seconds=seconds, waited=self.waited * seconds)
            count += split
        return count


def test_what_is_quicker_is_kept() -> None:
    cohort = Cohort(1.0, 0.7)
    cohort.run(40)
    assert cohort.run(1000) > 900


def test_what_is_slower_is_tried_ever_more_seldom() -> None:
    cohort = Cohort(1.0, 1.4)
    assert 0 < cohort.run(1000) < 60
    assert cohort.run(4000) < 30


def test_what_is_nearly_equal_stays_whole() -> None:
    cohort = Cohort(1.0, 0.97)
    cohort.run(100)
    assert cohort.run(3000) < 60


def test_it_changes_its_mind_when_the_times_do() -> None:
    cohort = Cohort(1.0, 0.7)
    cohort.run(100)
    cohort.times = {False: 0.7, True: 1.0}
    cohort.run(5000)
    assert cohort.run(500) < 50


def test_loads_are_told_apart() -> None:
    cohort = Cohort(1.0, 0.7)
    cohort.run(100, tokens=64)
    cohort.times = {False: 1.0, True: 1.5}
    cohort.run(100, tokens=4)
    assert cohort.run(200, tokens=4) < 40
    cohort.times = {False: 1.0, True: 0.7}
    assert cohort.run(200, tokens=64) > 150


def test_nothing_is_tried_where_nothing_can_overlap() -> None:
    for waited in (0.02, 0.97):
        assert Cohort(1.0, 0.5, waited=waited).run(500) == 0


def test_single_tokens_are_never_split_and_nothing_asked() -> None:
    assert Cohort(1.0, 0.5).run(200, tokens=1) == 0


def test_workers_that_do_not_follow_are_left_alone() -> None:
    cohort = Cohort(1.0, 0.5)
    cohort.follow = False
    asked = 0
    for _ in range(2000):
        cohort.run(1)
        asked += cohort.advice
    assert asked < 200
