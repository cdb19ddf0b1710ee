"""`training run` on a terminal: its ^C, and its table."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios
from collections.abc import Iterator

import pytest

from tests.mount.harness import wait_until
from tests.mount.runs import TITLE, Desk, Started, python

pytestmark = [pytest.mark.mount, pytest.mark.once]


class Terminal:
    """A terminal whose keyboard and screen the test is; `end` is what a program has open of it."""

    def __init__(self) -> None:
        self.controller, self.end = pty.openpty()
        os.set_blocking(self.controller, False)
        self._seen = b""

    def take(self) -> None:
        """In a new session's first process: let it be the terminal of that session."""
        fcntl.ioctl(self.end, termios.TIOCSCTTY, 0)

    def type(self, keys: bytes) -> None:
        os.write(self.controller, keys)

    @property
    def screen(self) -> str:
        try:
            while part := os.read(self.controller, 65536):
                self._seen += part
        except OSError:  # nothing more for now, or nobody at the other end
            pass
        return self._seen.decode()

    def close(self) -> None:
        os.close(self.controller)
        os.close(self.end)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


def start(desk: Desk, terminal: Terminal, code: str) -> Started:
    return desk.start("job", command=python(code), stdin=terminal.end, start_new_session=True, preexec_fn=terminal.take)


def test_a_terminals_interrupt_reaches_the_command_and_it_may_still_save(desk: Desk, terminal: Terminal) -> None:
    started = start(
        desk,
        terminal,
        """
        try:
            print('ready')
            time.sleep(60)
        except KeyboardInterrupt:
            (out / 'last.bin').write_bytes(b'last')
            sys.exit(9)
        """,
    )
    started.wait_line("ready")
    terminal.type(b"\x03")
    assert started.wait() == 9
    assert [one["name"] for one in desk.listed("job")] == ["last.bin"]


def test_a_terminals_interrupt_is_not_forwarded_a_second_time(desk: Desk, terminal: Terminal) -> None:
    """Two quick signals may become one: so the command leaves the terminal's process group, where none may reach it,
    and its child, which stays, tells when it was sent."""
    started = start(
        desk,
        terminal,
        """
        reading, writing = os.pipe()
        if os.fork() == 0:
            signal.signal(signal.SIGINT, lambda *_: os._exit(os.write(writing, b'sent') != 4))
            os.write(writing, b'ready')
            time.sleep(60)
        seen = []
        signal.signal(signal.SIGINT, lambda *_: seen.append('forwarded'))
        os.setpgid(0, 0)
        os.read(reading, 5)
        print('ready')
        print(os.read(reading, 4))
        time.sleep(0.5)  # for one that is forwarded
        print('seen', seen)
        """,
    )
    started.wait_line("ready")
    terminal.type(b"\x03")
    assert started.wait() == 0
    assert started.out == "ready\nb'sent'\nseen []\n"


def test_the_table_on_a_narrow_terminal_cuts_no_id(desk: Desk, terminal: Terminal) -> None:
    fcntl.ioctl(terminal.end, termios.TIOCSWINSZ, struct.pack("4H", 24, 40, 0, 0))
    started = desk.start("job", command=python("(out / 'm.bin').write_bytes(b'w')"), stderr=terminal.end)
    wait_until("it ended", lambda: (terminal.screen, started.process.poll())[1] is not None)
    (found,) = desk.listed("job")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", terminal.screen)
    assert TITLE in plain.replace("\r\n", " ")
    assert any(line.strip() == found["id"] or line.startswith(found["id"]) for line in plain.splitlines()), plain
