from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping

import pytest
import torch
from blake3 import blake3
from safetensors.torch import save as save_safetensors

from fuse_ckpt.model import Shape
from tests.cli.conftest import Program, Shelf
from tests.contents.samples import pickled, saved, torch_zip


def state(**tensors: torch.Tensor) -> bytes:
    return saved({"model": dict(tensors), "optimizer": {"m": torch.zeros(2)}})


def put(shelf: Shelf, name: str, files: Mapping[str, bytes]) -> str:
    return shelf.put(name, files, shape=Shape.DIRECTORY).id


# -- show


def test_show_tells_formats_types_and_sums(shelf: Shelf, program: Program) -> None:
    id_ = put(shelf, "step-1", {"a.pt": state(w=torch.ones(2, 3), b=torch.ones(2).half()), "config.json": b"{}"})
    said = program("checkpoint", "show", "digits/step-1")
    assert said.code == 0
    first, _, a, config, *_ = said.out.splitlines()
    assert first == f"Contents of {id_} (digits/step-1@1)"
    assert [cell.strip() for cell in a.split("│")][:3] == ["a.pt", "torch zip", "3"]
    assert [cell.strip() for cell in config.split("│")] == ["config.json", "", "", "2 bytes"]
    assert "3 tensors, 36 bytes, 8 parameters" in said.out
    assert "model.w" not in said.out


def test_show_lists_each_tensor(shelf: Shelf, program: Program) -> None:
    put(shelf, "step-1", {"a.pt": state(w=torch.ones(2, 3), s=torch.tensor(1.0))})
    said = program("checkpoint", "show", "digits/step-1", "--tensors")
    rows = [[cell.strip() for cell in line.split("│")] for line in said.out.splitlines()]
    assert ["model.w", "2×3", "float32", "24 bytes", "a.pt", ""] in [[*row, ""][:6] for row in rows]
    assert any(row[:2] == ["model.s", "scalar"] for row in rows)


def test_show_in_json_is_pure_and_whole(shelf: Shelf, program: Program) -> None:
    put(shelf, "step-1", {"a.safetensors": save_safetensors({"w": torch.ones(2, 3)})})
    document = json.loads(program("checkpoint", "show", "digits/step-1", "--json").out)
    assert (document["name"], document["version"], document["tensorCount"], document["parameters"]) == (
        "step-1",
        1,
        1,
        6,
    )
    assert document["types"] == [{"dtype": "float32", "tensors": 1, "elements": 6, "sizeBytes": 24}]
    assert "tensors" not in document
    document = json.loads(program("checkpoint", "show", "digits/step-1", "--json", "--tensors").out)
    assert document["tensors"] == [
        {"name": "w", "group": "a.safetensors", "files": ["a.safetensors"], "dtype": "float32", "shape": [2, 3],
         "elements": 6, "sizeBytes": 24, "fault": None}
    ]  # fmt: skip


def test_a_name_that_moves_the_cursor_is_printed_visibly(shelf: Shelf, program: Program) -> None:
    put(shelf, "step-1", {"a.pt": saved({"w\x1b[2J\n": torch.ones(1)})})
    said = program("checkpoint", "show", "digits/step-1", "--tensors")
    assert r"w\x1b[2J\x0a" in said.out
    assert "\x1b" not in said.out


@pytest.mark.parametrize(
    ("data", "code", "part"),
    [
        (torch_zip(b"\x80\x02}"), 4, "a.pt breaks off in a pickle"),
        (b"PK\x03\x04", 4, "a.pt is a zip file that is cut off or broken"),
        (torch_zip(pickled(b"]" * 300 + b"a" * 299)), 1, "a.pt has values that are nested more deeply"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_line_and_a_code(
    shelf: Shelf, program: Program, data: bytes, code: int, part: str
) -> None:
    put(shelf, "step-1", {"a.pt": data, "good.pt": state(w=torch.ones(1))})
    for command in (("show", "digits/step-1"), ("diff", "digits/step-1", "digits/step-1")):
        said = program("checkpoint", *command)
        assert said.code == code
        assert part in said.err.splitlines()[0]
        assert "good.pt" in said.out or command[0] == "diff"


def test_a_missing_blob_is_corrupt(shelf: Shelf, program: Program) -> None:
    put(shelf, "step-1", {"a.pt": b"data"})
    shelf.store.blob_path(blake3(b"data").hexdigest()).unlink()
    for command in (("show",), ("scan",), ("diff", "digits/step-1")):
        said = program("checkpoint", *command, "digits/step-1")
        assert said.code == 4
        assert len(said.err.splitlines()) == 1
        assert "missing in the store" in said.err


@pytest.mark.parametrize("command", [("show",), ("diff", "digits/step-1"), ("scan",), ("verify",)])
def test_an_unknown_one_is_not_found(shelf: Shelf, program: Program, command: tuple[str, ...]) -> None:
    put(shelf, "step-1", {"a.pt": b"data"})
    said = program("checkpoint", *command, "nothing")
    assert (said.code, said.out, said.err) == (3, "", "Unknown Checkpoint: nothing\n")


@pytest.mark.parametrize("command", ["show", "diff", "scan", "verify"])
def test_help_has_an_example_and_the_exit_codes(program: Program, command: str) -> None:
    said = program("checkpoint", command, "--help")
    assert f"fuse-ckpt checkpoint {command} " in said.out
    assert "Exit codes: 0 " in said.out


# -- diff


def test_diff_tells_files_and_tensors_that_differ(shelf: Shelf, program: Program) -> None:
    bad = torch.tensor([2.0, float("nan"), float("inf")])
    put(shelf, "step-1", {"a.pt": state(w=torch.ones(3), same=torch.ones(2)), "old": b"x", "c": b"c"})
    put(shelf, "step-2", {"a.pt": state(w=bad, same=torch.ones(2), new=torch.ones(1)), "c": b"c", "d.json": b"{}"})
    said = program("checkpoint", "diff", "digits/step-1", "digits/step-2")
    assert said.code == 0
    rows = [[cell.strip() for cell in line.split("│")] for line in said.out.splitlines()]
    assert ["model.w", "changed", "3", "float32", "1", "1", "0 → 1", "0 → 1", "a.pt"] in [row[:9] for row in rows]
    assert any(row[:2] == ["model.new", "added"] for row in rows)
    assert any(row[:2] == ["a.pt", "changed"] for row in rows)
    assert "Files: 2 changed, 1 unchanged" in said.out
    assert "Tensors: 1 added, 1 changed, 2 unchanged" in said.out


def test_diff_in_json_has_what_is_unchanged_too(shelf: Shelf, program: Program) -> None:
    first = put(shelf, "step-1", {"a.pt": state(w=torch.ones(3))})
    second = put(shelf, "step-2", {"a.pt": state(w=torch.ones(3) * 1.5)})
    document = json.loads(program("checkpoint", "diff", first, second, "--json").out)
    assert (document["before"]["id"], document["after"]["id"], document["identical"]) == (first, second, False)
    assert document["tensorCounts"] == {"added": 0, "removed": 0, "changed": 1, "unchanged": 1, "not compared": 0}
    changed = document["tensors"][0]
    assert (changed["name"], changed["maxAbs"], changed["relativeL2"]) == ("model.w", 0.5, 0.5)
    assert (changed["nan"], changed["infinite"], changed["before"]["shape"]) == ([0, 0], [0, 0], [3])


def test_diff_of_the_same_says_so(shelf: Shelf, program: Program) -> None:
    first = put(shelf, "step-1", {"a.pt": state(w=torch.ones(3))})
    second = put(shelf, "step-2", {"a.pt": state(w=torch.ones(3))})
    for other in (first, second):
        said = program("checkpoint", "diff", first, other, "--exit-code")
        assert said.code == 0
        assert said.out.splitlines()[1] == "The same: 1 unchanged."


def test_exit_code_tells_a_script_that_they_differ(shelf: Shelf, program: Program) -> None:
    put(shelf, "step-1", {"a.pt": state(w=torch.ones(3))})
    put(shelf, "step-2", {"a.pt": state(w=torch.zeros(3))})
    assert program("checkpoint", "diff", "digits/step-1", "digits/step-2", "--exit-code").code == 1


# -- scan


def test_a_safe_checkpoint_is_safe(shelf: Shelf, program: Program) -> None:
    put(shelf, "step-1", {"a.pt": state(w=torch.ones(3)), "config.json": b"{}"})
    said = program("checkpoint", "scan", "digits/step-1")
    assert said.code == 0
    assert [row[:3] for row in said.rows[:1]] == [["a.pt", "safe", "1"]]
    assert said.out.splitlines()[-1] == "1 more without pickles"
    put(shelf, "step-2", {"config.json": b"{}"})
    said = program("checkpoint", "scan", "digits/step-2")
    assert (said.code, said.out.splitlines()[-1]) == (0, "safe: none of its files holds a pickle")


def test_what_runs_something_is_told_by_name(shelf: Shelf, program: Program) -> None:
    evil = pickled(b"cos\nsystem\nX\x04\0\0\0true\x85R0cbuiltins\nprint\n")
    put(shelf, "step-1", {"a.pt": torch_zip(evil), "b.pt": state(w=torch.ones(1)), "c.pt": b"\x80\x02"})
    said = program("checkpoint", "scan", "digits/step-1")
    assert said.code == 1
    assert said.rows == [
        ["a.pt", "not safe", "1", "calls os.system; imports builtins.print"],
        ["b.pt", "safe", "1", ""],
        ["c.pt", "not known", "0", "it breaks off in a pickle"],
    ]
    document = json.loads(program("checkpoint", "scan", "digits/step-1", "--json").out)
    assert document["safe"] is False
    assert document["files"][0]["globals"] == [
        {"name": "os.system", "called": True},
        {"name": "builtins.print", "called": False},
    ]


def test_names_may_be_allowed(shelf: Shelf, program: Program) -> None:
    put(shelf, "step-1", {"a.pt": saved(torch.nn.Linear(1, 1))})
    assert program("checkpoint", "scan", "digits/step-1").code == 1
    said = program("checkpoint", "scan", "digits/step-1", "--allow", "torch.nn.modules.*", "--json")
    assert said.code == 0
    assert "torch.nn.modules.linear.Linear" in json.loads(said.out)["files"][0]["allowed"]


def test_what_was_found_is_kept_and_inspect_tells_it(shelf: Shelf, program: Program) -> None:
    put(shelf, "step-1", {"a.pt": saved(torch.nn.Linear(1, 1)), "config.json": b"{}"})
    assert "scan" not in json.loads(program("checkpoint", "inspect", "digits/step-1", "--json").out)["status"]
    first = program("checkpoint", "scan", "digits/step-1", "--json")
    told = json.loads(program("checkpoint", "inspect", "digits/step-1", "--json").out)["status"]["scan"]
    assert told == {"safe": False, "globals": ["torch.nn.modules.linear.Linear"]}
    assert program("checkpoint", "scan", "digits/step-1", "--json") == first
    assert program("checkpoint", "scan", "digits/step-1", "--json", "--again") == first


# -- verify


def flip(shelf: Shelf, data: bytes) -> None:
    path = shelf.store.blob_path(blake3(data).hexdigest())
    path.chmod(0o600)
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])


def test_verify_says_that_all_is_well(shelf: Shelf, program: Program) -> None:
    put(shelf, "step-1", {"a": b"one", "b": b"two"})
    said = program("checkpoint", "verify", "digits/step-1")
    assert (said.code, said.err) == (0, "")
    assert said.out == "Verified 1 checkpoint, 2 blobs, 6 bytes: all is as it was saved.\n"
    assert program("checkpoint", "verify", "--all").code == 0


def test_damage_is_a_line_each_marked_and_passed_over(shelf: Shelf, program: Program) -> None:
    first = put(shelf, "step-1", {"a": b"one"})
    second, third = put(shelf, "step-2", {"a": b"two", "b": b"three"}), put(shelf, "step-3", {"c": b"two"})
    flip(shelf, b"two")
    said = program("checkpoint", "verify", "--all", "--dry-run")
    assert said.code == 4
    lines = said.out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"{second} (digits/step-2@1): 'a': blob ")
    assert lines[0].endswith(f"is damaged: its bytes have another digest. The same bytes are in {third}.")
    assert said.err.startswith("2 checkpoints of 3 damaged: ")
    assert program("checkpoint", "inspect", "digits:latest", "--json").out.find(third) > 0
    said = program("checkpoint", "verify", "--all", "--json")
    document = json.loads(said.out)
    assert (said.code, document["failed"], document["checkpoints"]) == (4, [second, third], 3)
    assert document["damage"][0]["sharedWith"] == [third]
    status = json.loads(program("checkpoint", "inspect", second, "--json").out)["status"]
    assert (status["status"], status["failure"]) == ("failed", "damaged in the store: 'a'")
    assert json.loads(program("checkpoint", "inspect", "digits:latest", "--json").out)["metadata"]["id"] == first


def test_what_a_later_save_has_mended_is_available_again(shelf: Shelf, program: Program) -> None:
    first = put(shelf, "step-1", {"a": b"one"})
    flip(shelf, b"one")
    assert program("checkpoint", "verify", first).code == 4
    put(shelf, "step-2", {"a": b"one"})
    said = program("checkpoint", "verify", "--all")
    assert (said.code, said.out.splitlines()[0]) == (0, f"{first} is whole again, and available.")
    assert json.loads(program("checkpoint", "inspect", first, "--json").out)["status"]["status"] == "available"


@pytest.mark.parametrize("arguments", [(), ("--all", "digits:latest")])
def test_verify_wants_checkpoints_or_all(shelf: Shelf, program: Program, arguments: tuple[str, ...]) -> None:
    put(shelf, "step-1", {"a": b"one"})
    said = program("checkpoint", "verify", *arguments)
    assert said.code == 2
    assert "--all" in said.err


def test_the_new_commands_import_numpy_only_to_compare(shelf: Shelf) -> None:
    put(shelf, "step-1", {"a.pt": state(w=torch.ones(3))})
    shelf.close()
    code = "import sys; from fuse_ckpt.cli import main; main(sys.argv[1:]); print({'numpy', 'rich'} & set(sys.modules))"
    for command in ("show", "scan", "verify"):
        arguments = ["--store", str(shelf.root), "checkpoint", command, "digits/step-1"]
        made = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert made.stdout.splitlines()[-1] == "set()", command
