"""Files that processes leave for each other: a live one's stay, a dead one's go, others' are not touched."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from janus_runtime import shared_folder as sf
from janus_runtime.errors import FailedPrecondition

_OWNER = """
import sys, time
from pathlib import Path
from janus_runtime import shared_folder as sf
sf.create(Path(sys.argv[1]), "theirs", 100)
print("there", flush=True)
time.sleep(60)
"""


def folder_in(base: Path) -> Path:
    return sf.shared_folder("unix:///run/redis.sock", "janus", base)


@pytest.fixture
def owner(tmp_path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(folder_in(tmp_path))], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "there\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_meshes_have_folders_of_their_own_and_names_that_give_nothing_away(tmp_path: Path) -> None:
    def name(url: str, namespace: str = "janus") -> str:
        return sf.shared_folder(url, namespace, tmp_path).name

    assert name("redis://h:6379/0") == name("redis://user:secret@h:6379/0")
    different = [
        name("redis://h:6379/0"), name("redis://h:6380/0"), name("redis://i:6379/0"), name("redis://h:6379/1"),
        name("unix:///a/redis.sock"), name("unix:///b/redis.sock"), name("redis://h:6379/0", "other"),
    ]  # fmt: skip
    assert len(set(different)) == len(different)


def test_only_their_user_may_open_them(tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    descriptor = sf.create(folder, "ours", 100)
    assert folder.stat().st_mode & 0o777 == 0o700 and (folder / "ours").stat().st_mode & 0o777 == 0o600
    assert os.fstat(descriptor).st_size == 100 and sf.names(folder) == ["ours"]
    folder.chmod(0o755)
    assert sf.names(folder) == [], "whoever could write there could have put anything there"
    with pytest.raises(FailedPrecondition, match="others may open it"):
        sf.create(folder, "more", 100)
    os.close(descriptor)


@pytest.mark.parametrize("what", ["link", "fifo", "folder"])
def test_what_is_no_plain_file_is_not_read(tmp_path: Path, what: str) -> None:
    folder = folder_in(tmp_path)
    os.close(sf.create(folder, "ours", 100))
    target = folder / "odd"
    {"link": lambda: target.symlink_to("ours"), "fifo": lambda: os.mkfifo(target), "folder": target.mkdir}[
        what
    ]()
    with pytest.raises(OSError), sf.opened(folder, "odd"):
        pass
    assert sf.tidy(tmp_path, dead_s=0) == 1, "the plain one"


def test_no_folder_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FailedPrecondition, match="cannot keep a file"):
        sf.create(tmp_path / "file", "ours", 100)
    assert sf.names(tmp_path / "file") == [] and sf.names(tmp_path / "none") == []


def test_a_live_ones_stay_and_a_dead_ones_go_after_a_while(
    tmp_path: Path, owner: subprocess.Popen[str]
) -> None:
    folder = folder_in(tmp_path)
    assert sf.tidy(tmp_path, dead_s=0) == 0 and sf.names(folder) == ["theirs"]
    owner.send_signal(signal.SIGSTOP)
    assert sf.tidy(tmp_path, dead_s=0) == 0, "frozen is not dead"
    owner.kill()
    owner.wait()
    assert sf.tidy(tmp_path, dead_s=0.3) == 0, "somebody may be about to read it"
    with sf.opened(folder, "theirs"):
        assert sf.tidy(tmp_path, dead_s=0.3) == 0
    time.sleep(0.35)
    assert sf.tidy(tmp_path, dead_s=0.3) == 1
    assert not folder.exists()


def test_one_that_is_being_made_is_let_be(tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    folder.mkdir(mode=0o700)
    (folder / "ours.new").touch(0o600)
    assert sf.tidy(tmp_path, dead_s=0) == 0 and sf.names(folder) == []
    os.utime(folder / "ours.new", (1, 1))  # its maker died
    assert sf.tidy(tmp_path, dead_s=0) == 1 and not folder.exists()


def test_other_users_folders_and_other_folders_are_not_touched(tmp_path: Path) -> None:
    for name in ("janus-engines-x", f"janus-{os.geteuid() + 1}-0123456789abcdef", "other"):
        (tmp_path / name).mkdir(mode=0o700)
        (tmp_path / name / "file").touch()
    assert sf.tidy(tmp_path, dead_s=0) == 0
    assert len(list(tmp_path.glob("*/file"))) == 3


def test_a_lock_that_somebody_looks_at_is_no_obstacle(tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    descriptor = sf.create(folder, "ours", 100)
    with sf.opened(folder, "ours") as looking, pytest.raises(BlockingIOError):
        fcntl.flock(looking, fcntl.LOCK_SH | fcntl.LOCK_NB)
    os.close(descriptor)
    sf.remove_folder(folder)
    sf.remove_folder(folder)
    assert not folder.exists()
