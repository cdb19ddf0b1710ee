from __future__ import annotations

from pathlib import Path

import pytest

from fuse_ckpt.cli.settings import Settings

HOME = Path.home()


@pytest.mark.parametrize(
    ("environment", "store"),
    [
        ({}, HOME / ".local/share/fuse-ckpt"),
        ({"XDG_DATA_HOME": "/data"}, Path("/data/fuse-ckpt")),
        ({"XDG_DATA_HOME": "relative/is/ignored"}, HOME / ".local/share/fuse-ckpt"),
        ({"XDG_DATA_HOME": "/data", "FUSE_CKPT_STORE": "/store"}, Path("/store")),
        ({"FUSE_CKPT_STORE": ""}, HOME / ".local/share/fuse-ckpt"),
        ({"FUSE_CKPT_STORE": "~/s"}, HOME / "s"),
        ({"FUSE_CKPT_STORE": "s/../t"}, Path.cwd() / "t"),
    ],
)
def test_the_store_is_where_the_environment_says(environment: dict[str, str], store: Path) -> None:
    assert Settings.from_environment(environment).store == store


def test_no_color_counts_unless_it_is_empty() -> None:
    assert not Settings.from_environment({"NO_COLOR": "1"}).colour
    assert Settings.from_environment({"NO_COLOR": ""}).colour
