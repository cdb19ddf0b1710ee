"""Files that training left truncated, or that somebody else wrote: what a checkpoint says of itself then."""

from __future__ import annotations

import json

import pytest

from tests.mount.runs import Desk, python

pytestmark = [pytest.mark.mount, pytest.mark.once]

_CONFIG = json.dumps({"architectures": ["GPT2LMHeadModel"], "transformers_version": "4.1.0"})
_STATE = json.dumps({"global_step": 7, "log_history": [{"step": 7, "loss": 0.5}, {"step": 7, "eval_loss": 0.25}]})
_WRITE = """
import json
header = json.dumps({'w': {'dtype': 'U8', 'shape': [4], 'data_offsets': [0, 4]}}).encode()
for name, files in json.loads(sys.argv[1]).items():
    (out / name).mkdir()
    (out / name / 'model.safetensors').write_bytes(len(header).to_bytes(8, 'little') + header + b'abcd')
    for path, text in files.items():
        (out / name / path).write_bytes(text.encode('latin-1'))
"""
_CELLS = ("step", "trainLoss", "evalLoss", "model", "version", "inferenceReady")
_OF_STATE = (7, 0.5, 0.25)
_OF_CONFIG = ("GPT2LMHeadModel", "4.1.0", True)
_NONE = (None, None, None)
_NO_MODEL = (None, None, False)
_SAID = {
    # name: config.json, trainer_state.json, status, cells, what a note names
    "good": (_CONFIG, _STATE, "available", _OF_STATE + _OF_CONFIG, None),
    "config-cut": (_CONFIG[:-9], _STATE, "available", _OF_STATE + _NO_MODEL, "config.json"),
    "config-empty": ("", _STATE, "available", _OF_STATE + _NO_MODEL, "config.json"),
    "config-binary": ("\x80\xff\x00", _STATE, "available", _OF_STATE + _NO_MODEL, "config.json"),
    "config-list": ("[1, 2]", _STATE, "available", _OF_STATE + _NO_MODEL, "config.json"),
    "config-deep": ("[" * 100_000, _STATE, "available", _OF_STATE + _NO_MODEL, "config.json"),
    "config-foreign": ('{"architectures": {"a": 1}}', _STATE, "available", _OF_STATE + _NO_MODEL, "config.json"),
    "state-cut": (_CONFIG, _STATE[:-9], "failed", _NONE + _OF_CONFIG, "trainer_state.json"),
    "state-foreign": (_CONFIG, '{"hello": [1]}', "available", _NONE + _OF_CONFIG, "trainer_state.json"),
    "state-odd": (
        _CONFIG, '{"global_step": "x", "log_history": [{"step": {}, "loss": "y"}, 3]}', "available",
        _NONE + _OF_CONFIG, "trainer_state.json",
    ),
}  # fmt: skip


def test_what_cannot_be_read_of_a_checkpoint_gives_empty_cells_and_a_note(desk: Desk) -> None:
    files = {name: {"config.json": said[0], "trainer_state.json": said[1]} for name, said in _SAID.items()}
    done = desk.run("job", command=python(_WRITE, json.dumps(files)))
    assert done.returncode == 0, done.stderr
    desk.expect_log("state-cut|trainer_state.json")
    found = {one["name"]: one for one in desk.listed("job", all=True)}
    assert {name: one["status"] for name, one in found.items()} == {name: said[2] for name, said in _SAID.items()}
    cells = {name: tuple(found[name][key] for key in _CELLS) for name in _SAID}
    assert cells == {name: said[3] for name, said in _SAID.items()}
    for name, said in _SAID.items():
        status = desk.inspected("checkpoint", found[name]["id"])["status"]
        notes = " ".join(status.get("notes", []))
        assert said[4] is None or said[4] in notes, (name, notes)
        assert ("failure" in status) == (said[2] == "failed")
        assert len(status["files"]) == 3, "nothing is lost"
