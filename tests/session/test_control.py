"""The daemon's socket: whoever starts a command says so there, and must be heard."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import trio

from fuse_ckpt.session import control


def test_a_daemon_that_has_started_to_listen_hears_the_first_question(tmp_path: Path) -> None:
    heard: list[str] = []

    async def answer(question: str) -> control.Answer:
        heard.append(question)
        return {"heard": True}

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(control.listen, tmp_path / "control", answer)
            ask = partial(control.ask, tmp_path / "control", "command 1", patience=60.0)
            assert await trio.to_thread.run_sync(ask) == {"heard": True}
            nursery.cancel_scope.cancel()

    for _ in range(20):
        trio.run(main)
    assert heard == ["command 1"] * 20


def test_where_none_listens_there_is_no_answer(tmp_path: Path) -> None:
    assert control.ask(tmp_path / "control", "status") is None
    (tmp_path / "control").touch()
    assert control.ask(tmp_path / "control", "status") is None
