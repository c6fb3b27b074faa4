"""Programs of the user: what they get, what of them comes back, and that nothing they do makes anybody wait."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.commands import eventually

from mergd.plugins import programs
from mergd.plugins.programs import ANSWER, FRAME, KEPT, Child, Log, Ran, Unit, frame_of, read_frame
from mergd.plugins.run_program import PATIENCE, REQUEST, USAGE, answer

LONG = 60.0  # seconds that no test of these takes


def never() -> bool:
    return False


def child(tmp_path: Path, script: str, *words: str, **environment: str) -> Child:
    """A shell's script as a child."""
    return Child(("/bin/sh", "-c", script, "sh", *words), tmp_path / "log", environment)


def ran(tmp_path: Path, script: str, request: bytes = b"{}", seconds: float = LONG) -> Ran:
    return child(tmp_path, script).run(request, seconds, never)


def gone(pid: int) -> bool:
    """Whether no such process runs any more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


# ---------------------------------------------------------------------------------------------------- what it is given


def test_it_reads_the_request_and_its_answer_exit_and_last_line_come_back(tmp_path: Path) -> None:
    found = ran(tmp_path, "cat; echo first >&2; printf 'last  \\n\\n' >&2; exit 65", b'{"version": 7}')
    assert found == Ran(65, b'{"version": 7}', "last")


def test_a_request_larger_than_any_pipe_arrives_whole(tmp_path: Path) -> None:
    assert ran(tmp_path, "wc -c", b"x" * 3_000_000).output.strip() == b"3000000"


def test_its_environment_is_empty_but_for_the_path_the_language_and_what_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("LANG", "C.UTF-8")
    code = "import os, json; print(json.dumps(dict(os.environ)))"
    program = Child((sys.executable, "-IS", "-c", code), tmp_path / "log", {"GIVEN": "1"})
    found = json.loads(program.run(b"", LONG, never).output)
    found.pop("LC_CTYPE", None)  # Python's own
    assert found == {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "GIVEN": "1"}


def test_no_file_of_ours_is_open_in_it(tmp_path: Path) -> None:
    with (tmp_path / "ours").open("w") as ours:
        os.set_inheritable(ours.fileno(), True)
        found = ran(tmp_path, "ls /proc/self/fd").output.split()
    assert set(found) <= {b"0", b"1", b"2", b"3"}  # the last is the folder that ls reads


def test_it_has_a_session_of_its_own_and_stands_in_no_folder_of_ours(tmp_path: Path) -> None:
    session, process, place = ran(tmp_path, "cut -d' ' -f6 /proc/$$/stat; echo $$; pwd").output.split()
    assert session == process
    assert place == b"/"


# ------------------------------------------------------------------------------------------------------ how it is ended


@contextmanager
def running(tmp_path: Path, script: str, seconds: float, stopped: Callable[[], bool]) -> Iterator[list[Ran]]:
    """Run a script on a thread; gives where its end will be."""
    ends: list[Ran] = []
    thread = threading.Thread(target=lambda: ends.append(child(tmp_path, script).run(b"", seconds, stopped)))
    thread.start()
    yield ends
    thread.join(LONG)
    assert not thread.is_alive()


def test_at_the_end_of_its_time_all_of_its_group_is_killed(tmp_path: Path) -> None:
    found = ran(tmp_path, f"sleep 1000 & echo $! > {tmp_path}/pid; trap '' TERM; sleep 1000", seconds=1.0)
    assert found == Ran(None, b"", "it took too long")
    eventually(lambda: gone(int((tmp_path / "pid").read_text())))


def test_it_ends_soon_after_it_is_stopped(tmp_path: Path) -> None:
    stop = threading.Event()
    with running(tmp_path, f"echo $$ > {tmp_path}/pid; exec sleep 1000", LONG * 10, stop.is_set) as ends:
        eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
        stop.set()
    assert ends == [Ran(None, b"", "it was stopped")]
    assert gone(int((tmp_path / "pid").read_text()))


def test_what_it_leaves_running_in_its_group_ends_with_it(tmp_path: Path) -> None:
    assert ran(tmp_path, f"sleep 1000 & echo $! > {tmp_path}/pid; echo done") == Ran(0, b"done\n", "done")
    eventually(lambda: gone(int((tmp_path / "pid").read_text())))


def test_a_daemon_that_it_forks_and_that_keeps_its_output_open_is_not_waited_for(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; os.fork() and sys.exit(); os.setsid(); print(os.getpid(), flush=True); time.sleep(1000)"
    )
    script = f"{sys.executable} -ISc '{code}'; read line < {tmp_path}/fifo"
    os.mkfifo(tmp_path / "fifo")
    with running(tmp_path, script, LONG, never) as ends:
        (tmp_path / "fifo").write_text("go\n")
    (found,) = ends
    assert found.exit == 0
    if found.output:  # its number, if it came before the end
        os.kill(int(found.output), 9)


def test_one_that_reads_nothing_and_closes_its_input_is_let_be(tmp_path: Path) -> None:
    assert ran(tmp_path, "exec 0<&-; echo no newline | tr -d '\\n'", b"x" * 3_000_000) == Ran(
        0, b"no newline", "no newline"
    )


def test_one_that_closes_all_it_was_given_runs_on_until_it_ends(tmp_path: Path) -> None:
    assert ran(tmp_path, "exec 0<&- 1>&- 2>&-; sleep 0.2; exit 7").exit == 7


def test_a_signal_that_ended_it_is_told(tmp_path: Path) -> None:
    assert ran(tmp_path, "kill -SEGV $$").exit == -11


def test_one_that_is_not_there_gives_no_answer(tmp_path: Path) -> None:
    found = Child(("/no/such\nprogram",), tmp_path / "log").run(b"", LONG, never)
    assert found == Ran(None, b"", "/no/such\\nprogram cannot be run: No such file or directory")
    assert Child(("a\0b",), tmp_path / "log").run(b"", LONG, never).exit is None


# ---------------------------------------------------------------------------------------------------- what it may write


def test_an_answer_of_just_the_bound_is_taken_and_one_more_byte_is_refused(tmp_path: Path) -> None:
    assert len(ran(tmp_path, f"head -c {ANSWER} /dev/zero").output) == ANSWER
    assert ran(tmp_path, f"head -c {ANSWER + 1} /dev/zero") == Ran(None, b"", "it answered with more than 64 KiB")


def test_one_that_answers_without_end_is_killed(tmp_path: Path) -> None:
    found = ran(tmp_path, f"echo $$ > {tmp_path}/pid; exec cat /dev/zero")
    assert found == Ran(None, b"", "it answered with more than 64 KiB")
    assert gone(int((tmp_path / "pid").read_text()))


def test_what_it_writes_lies_in_a_file_that_its_owner_alone_reads(tmp_path: Path) -> None:
    ran(tmp_path, "echo answer; echo trouble >&2")
    assert (tmp_path / "log").read_text() == "trouble\nanswer\n"
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_a_program_that_writes_without_end_fills_no_disk(tmp_path: Path) -> None:
    found = ran(tmp_path, f"head -c {5 * KEPT} /dev/zero | tr '\\0' x >&2; echo ' the end' >&2")
    assert found.exit == 0
    assert found.last_line.endswith("…")
    kept = [path.stat().st_size for path in tmp_path.iterdir() if path.name.startswith("log")]
    assert len(kept) <= 2
    assert max(kept) <= KEPT + (1 << 16)


def test_the_log_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
    Log(tmp_path / "log").write(b"text")
    assert not (tmp_path / "elsewhere").exists()


def test_its_last_line_can_do_nothing_to_a_terminal_or_a_log(tmp_path: Path) -> None:
    assert ran(tmp_path, "printf '\\033[2J\\377red\\n' >&2").last_line == "\\x1b[2J\ufffdred"


# ----------------------------------------------------------------------------------------------------------- as a unit


@contextmanager
def listening(tmp_path: Path, serve: Callable[[socket.socket], object], busy: int = 0) -> Iterator[Unit]:
    """Have one connection served as `serve` does; `busy` others are turned away before it."""
    place = tmp_path / "unit"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place))
        server.listen()
        server.settimeout(LONG)

        def take() -> None:
            for _ in range(busy):
                server.accept()[0].close()
            with server.accept()[0] as connection:
                serve(connection)

        thread = threading.Thread(target=take)
        thread.start()
        yield Unit(place)
        thread.join(LONG)
        assert not thread.is_alive()


def running_program(connection: socket.socket, *command: str) -> None:
    """Do what systemd does with Accept=yes and StandardInput=socket."""
    words = [sys.executable, "-m", "mergd.plugins.run_program", *command]
    subprocess.run(words, stdin=connection.fileno(), stdout=subprocess.DEVNULL, check=True)


def test_a_unit_runs_the_program_that_it_names_and_answers_as_a_child_does(tmp_path: Path) -> None:
    script = "cat; echo heard >&2; exit 65"
    with listening(tmp_path, lambda connection: running_program(connection, "/bin/sh", "-c", script)) as unit:
        assert unit.run(b'{"version": 7}', LONG, never) == Ran(65, b'{"version": 7}', "heard")


def test_a_program_in_a_unit_ends_when_whoever_asked_hangs_up(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = f"echo $$ > {pid}; exec sleep 1000"
    with listening(tmp_path, lambda connection: running_program(connection, "/bin/sh", "-c", script)) as unit:
        found = unit.run(b"{}", LONG, lambda: pid.exists() and bool(pid.read_text()))
    assert found == Ran(None, b"", "it was stopped")
    assert gone(int(pid.read_text()))


def test_an_answer_that_is_too_long_is_refused_by_a_unit_too(tmp_path: Path) -> None:
    with listening(tmp_path, lambda connection: running_program(connection, "/bin/cat", "/dev/zero")) as unit:
        assert unit.run(b"{}", LONG, never) == Ran(None, b"", "it answered with more than 64 KiB")


def test_a_unit_where_nobody_listens_gives_no_answer(tmp_path: Path) -> None:
    found = Unit(tmp_path / "nobody").run(b"{}", LONG, never)
    assert found == Ran(None, b"", f"nobody answers at {tmp_path}/nobody: No such file or directory")
    assert Unit(tmp_path / ("x" * 200)).run(b"{}", LONG, never).exit is None


def test_a_unit_that_closes_without_a_word_gives_no_answer(tmp_path: Path) -> None:
    with listening(tmp_path, lambda connection: connection.recv(10)) as unit:
        assert unit.run(b"{}", LONG, never) == Ran(None, b"", "the unit closed the connection without an answer")


def test_a_unit_that_still_ends_what_it_was_asked_before_is_asked_again(tmp_path: Path) -> None:
    with listening(tmp_path, lambda connection: running_program(connection, "/bin/cat"), busy=3) as unit:
        assert unit.run(b"x" * 60_000, LONG, never).exit == 0


def test_a_unit_that_turns_everybody_away_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "BUSY", -1.0)
    with listening(tmp_path, lambda connection: None) as unit:
        assert unit.run(b"x" * 3_000_000, LONG, never).last_line.startswith("nobody answers at ")


@pytest.mark.parametrize(("stops", "why"), [(False, "it took too long"), (True, "it was stopped")])
def test_a_unit_that_keeps_silent_is_left(tmp_path: Path, stops: bool, why: str) -> None:
    def silent(connection: socket.socket) -> None:
        while connection.recv(1 << 16):
            pass
        hung_up.wait(LONG)

    hung_up = threading.Event()
    with listening(tmp_path, silent) as unit:
        assert unit.run(b"{}", LONG if stops else 0.3, lambda: stops) == Ran(None, b"", why)
        hung_up.set()


def test_a_unit_that_does_not_read_is_left(tmp_path: Path) -> None:
    def deaf(connection: socket.socket) -> None:
        done.wait(LONG)

    done = threading.Event()
    with listening(tmp_path, deaf) as unit:
        assert unit.run(b"x" * 5_000_000, 0.3, never) == Ran(None, b"", "it took too long")
        done.set()


@pytest.mark.parametrize(
    "frame",
    [
        b"[]",
        b"{",
        b"\xff",
        b'{"exit": true, "output": "", "last_line": ""}',
        b'{"exit": 0, "output": "\\ud800", "last_line": ""}',
        b'{"exit": 0, "output": 1, "last_line": ""}',
        b'{"exit": 0, "last_line": ""}',
        b"[" * 100_000,
        frame_of(Ran(0, b"x" * FRAME, "")),
        frame_of(Ran(0, b"x" * (3 * ANSWER + 1), "")),
    ],
    ids=lambda frame: str(frame[:50]),
)
def test_what_is_no_frame_is_no_answer(frame: bytes) -> None:
    assert read_frame(frame) == Ran(None, b"", "the unit answered with something else than run_program does")


def test_frames_say_what_was(tmp_path: Path) -> None:
    for found in (Ran(0, b'{"a": 1}', "last"), Ran(-9, b"", ""), Ran(None, b"", "it took too long")):
        assert read_frame(frame_of(found)) == found
    assert read_frame(frame_of(Ran(0, b"\xff", ""))).output.decode() == "\ufffd"
    assert read_frame(frame_of(Ran(0, b"\0" * ANSWER, ""))).exit == 0
    assert read_frame(frame_of(Ran(0, b"", "\n"))).last_line == "\\n"


def asked(request: bytes) -> bytes:
    """Return what a unit answers to a request."""
    ours, its = socket.socketpair()
    with ours, its:
        ours.settimeout(LONG)
        thread = threading.Thread(target=answer, args=(its, ("/bin/cat",)))
        thread.start()
        try:
            ours.sendall(request)
            ours.shutdown(socket.SHUT_WR)
        except BrokenPipeError:
            pass
        thread.join(LONG)
        its.close()
        return ours.recv(1 << 20)


def test_a_unit_refuses_a_request_without_end_and_has_nothing_to_say_to_an_empty_one() -> None:
    assert read_frame(asked(b"x" * (REQUEST + (1 << 16)))).last_line == "the request is longer than 1 MiB"
    assert asked(b"") == b""
    assert PATIENCE < LONG


def test_run_program_by_hand_says_who_runs_it() -> None:
    words = [sys.executable, "-m", "mergd.plugins.run_program", "/bin/true"]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, USAGE)


def test_run_program_brings_in_nothing_but_python_and_our_words() -> None:
    code = "import sys, mergd.plugins.run_program; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    plain = subprocess.run(
        [sys.executable, "-c", "import sys; print(*{name.partition('.')[0] for name in sys.modules})"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stdout.split()) - set(plain.stdout.split()) - sys.stdlib_module_names == {"mergd"}
