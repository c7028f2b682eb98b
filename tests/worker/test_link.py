"""The link between a control process and its engine: whole frames, no blocking, the other end's death."""

from __future__ import annotations

import random
import socket

import pytest
from janus_worker.link import ChildGone, ControlLink, EngineProcess, FrameParser, encode


def test_frames_survive_any_split() -> None:
    draw = random.Random(3)
    frames = [({"t": "x", "n": i}, draw.randbytes(draw.randrange(0, 300))) for i in range(50)]
    stream = b"".join(encode(body, blob) for body, blob in frames)
    parser, got = FrameParser(), []
    while stream:
        cut = draw.randrange(1, 40)
        got += parser.feed(stream[:cut])
        stream = stream[cut:]
    assert [(m.body, m.blob) for m in got] == frames


def test_absurd_length_is_refused() -> None:
    with pytest.raises(ValueError, match="at most"):
        FrameParser().feed(b"\xff" * 16)


def test_engine_never_blocks_on_a_slow_control_process() -> None:
    ours, theirs = socket.socketpair()
    link = ControlLink(theirs)
    for i in range(200):
        link.send({"n": i}, bytes(64_000))  # far more than the socket holds
    parser, seen = FrameParser(), []
    ours.settimeout(5)
    while len(seen) < 200:
        link.poll()
        seen += [m.body["n"] for m in parser.feed(ours.recv(1 << 20))]
    assert seen == list(range(200))
    ours.close()
    with pytest.raises(ChildGone):
        for _ in range(3):
            link.poll()
    theirs.close()


async def test_engine_death_is_told_with_its_status() -> None:
    engine = await EngineProcess.start("json.tool", ["--no-such-flag"])
    with pytest.raises(ChildGone, match="exit status 2"):
        await engine.receive()
    await engine.stop()


async def test_what_is_sent_after_the_stop_finds_the_engine_gone() -> None:
    """Streams that end while the worker stops still tell their engine; that is no error of theirs."""
    engine = await EngineProcess.start("json.tool", ["--no-such-flag"])
    await engine.stop()
    with pytest.raises(ChildGone, match="exit status 2"):
        await engine.send({"t": "cancel", "id": 1})
