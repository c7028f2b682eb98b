"""Load on a mesh of containers, and what the autoscaler makes of it; exit code 1 and a line for each check that fails.

Run by autoscale.sh. Everything has a deadline.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
import urllib.request

from janus_testing.load import make_requests
from janus_testing.open_load import OpenLoad, poisson

LOAD_S, RATE = 75.0, 2.5
GROW_S = 90.0
"""Within which more workers are in the cohort, from the load's beginning."""
FLOOR_S = 150.0
"""Within which the floor is reached again, from the load's end."""


class Watch:
    """Running containers of both pools, and members of the cohort, once a second."""

    def __init__(self, project: str, http: str) -> None:
        self._project, self._http = project, http
        self.rows: list[tuple[float, tuple[int, int], tuple[int, int]]] = []
        self.errors = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._stop.wait(1.0):
            try:
                row = (time.monotonic(), self._containers(), self._members())
            except (OSError, ValueError, KeyError, subprocess.SubprocessError):
                self.errors += 1
                continue
            if not self.rows or self.rows[-1][1:] != row[1:]:
                print(f"containers {row[1][0]} x {row[1][1]}, cohort {row[2][0]} x {row[2][1]}", flush=True)
            self.rows.append(row)

    def _containers(self) -> tuple[int, int]:
        label = f"label=com.docker.compose.project={self._project}"
        shown = '{{.Label "com.docker.compose.service"}}'
        command = ["docker", "ps", "--filter", label, "--format", shown]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        listed = done.stdout.split()
        return listed.count("attention"), listed.count("moe")

    def _members(self) -> tuple[int, int]:
        with urllib.request.urlopen(f"http://{self._http}/api/state", timeout=10) as answer:
            cohort = json.load(answer)["cohort"]
        return int(cohort["attention"]), int(cohort["moe"])

    def wait(self, what: str, within_s: float, ready: object) -> str:
        """'' as soon as ``ready(row)`` holds for the latest row, else what was waited for."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if self.rows and ready(self.rows[-1]):  # type: ignore[operator]
                return ""
            time.sleep(0.5)
        last = self.rows[-1][1:] if self.rows else "nothing"
        return f"{what}: not within {within_s:.0f} s; last seen, containers and cohort: {last}"


def main() -> int:
    """Run it."""
    options = argparse.ArgumentParser()
    for name in ("--project", "--http", "--grpc"):
        options.add_argument(name, required=True)
    given = options.parse_args()
    problems: list[str] = []
    load = OpenLoad(given.grpc, make_requests(8, 5, tokens=(20, 30)), timeout_s=120)
    with Watch(given.project, given.http) as watch:
        load.reference()
        # What the undisturbed run asked for is no part of the load.
        problems.append(watch.wait("1 x 1 before the load", 90, lambda r: r[1] == r[2] == (1, 1)))
        load.arrivals = poisson([(LOAD_S, RATE)], 5)
        with load:
            problems.append(
                watch.wait("more workers, in the cohort", GROW_S, lambda r: sum(r[2]) > 2 and r[1] == r[2])
            )
        problems.append(watch.wait("back at 1 x 1", FLOOR_S, lambda r: r[1] == r[2] == (1, 1)))
        time.sleep(10)
        if watch.rows[-1][1] != (1, 1):
            problems.append(f"it did not stay at the floor: {watch.rows[-1][1]}")
    most = max((r[2] for r in watch.rows), key=sum)
    problems += list(load.problems())
    if max(r[1][0] for r in watch.rows) > 3 or max(r[1][1] for r in watch.rows) > 3:
        problems.append("more than 3 workers in a pool")
    done = sum(s.done for s in load.streams)
    print(f"{done} of {len(load.streams)} streams, token by token as undisturbed: {not any(load.problems())}")
    print(f"1 x 1 -> {most[0]} x {most[1]} -> {watch.rows[-1][1][0]} x {watch.rows[-1][1][1]}")
    for problem in filter(None, problems):
        print(f"error: {problem}", file=sys.stderr)
    return any(problems)


if __name__ == "__main__":
    sys.exit(main())
