from __future__ import annotations

import io
import threading
import time

from janus_runtime.startup import Startup


def test_says_at_once_again_and_when_ready() -> None:
    out = io.StringIO()
    startup = Startup("moe", "moe-0", stream=out, every_s=0.05)
    startup.waiting("Redis at redis://x")
    assert out.getvalue() == "[waiting] moe-0: Redis at redis://x (0s)\n"
    startup.waiting("Redis at redis://x")  # the same again: no new line
    assert len(out.getvalue().splitlines()) == 1
    time.sleep(0.13)
    assert 2 <= len(out.getvalue().splitlines()) <= 4
    startup.ready("gRPC at 127.0.0.1:1")
    assert out.getvalue().splitlines()[-1].startswith("[ready] moe-0: gRPC at 127.0.0.1:1 (")


def test_thread_ends_with_the_wait() -> None:
    startup = Startup("moe", "moe-9", stream=io.StringIO(), every_s=0.05)
    startup.waiting("a")
    startup.waiting("b")
    assert startup.what == "b"
    assert [t for t in threading.enumerate() if t.name == "janus-startup"]
    startup.done()
    deadline = time.monotonic() + 2
    while any(t.name == "janus-startup" for t in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
