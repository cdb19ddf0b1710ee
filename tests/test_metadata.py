from __future__ import annotations

import io
import json
import os
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from fuse_ckpt.metadata import extract
from fuse_ckpt.metadata.pickles import outline
from fuse_ckpt.model import Metadata


def of(members: Mapping[str, bytes | str], unit: str = "") -> Metadata:
    return extract(unit, {path: opener(data) for path, data in members.items()})


def opener(data: bytes | str) -> Callable[[], BinaryIO]:
    return lambda: io.BytesIO(data if isinstance(data, bytes) else data.encode())


def saved(value: object, **options: bool) -> bytes:
    made = io.BytesIO()
    torch.save(value, made, **options)
    return made.getvalue()


def zipped(data_pkl: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data_pkl)
    return made.getvalue()


def training_state() -> dict[str, object]:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    return {"step": 70, "loss": 0.5, "model": model.state_dict(), "optimizer": optimizer.state_dict()}


STATE = {
    "global_step": 21,
    "log_history": [
        {"step": 10, "loss": 2.5, "epoch": 1.0},
        {"step": 20, "loss": 1.5, "epoch": 2.0},
        {"step": 20, "eval_loss": 1.25, "epoch": 2.0},
    ],
}
CONFIG = {"architectures": ["GPT2LMHeadModel"], "transformers_version": "5.23.0"}


# -- Hugging Face


def test_a_trainers_checkpoint_tells_everything() -> None:
    said = of({"trainer_state.json": json.dumps(STATE), "config.json": json.dumps(CONFIG), "optimizer.pt": b"x",
               "model.safetensors": save({"w": torch.ones(1)})})  # fmt: skip
    assert said == Metadata(
        step=20, epoch=2.0, train_loss=1.5, eval_loss=1.25, model="GPT2LMHeadModel", version="5.23.0",
        inference_ready=True, resumable=True, weights=True, format="safetensors", tensors=1,
    )  # fmt: skip


def test_the_runs_mean_loss_counts_only_where_no_entry_has_a_loss() -> None:
    summary = {"step": 30, "train_loss": 9.0}
    assert of({"trainer_state.json": json.dumps({"log_history": [{"step": 20, "loss": 1.5}, summary]})}) == Metadata(
        step=30, train_loss=1.5
    )
    assert of({"trainer_state.json": json.dumps({"log_history": [summary]})}).train_loss == 9.0


def test_the_global_step_is_the_step_where_nothing_was_logged() -> None:
    assert of({"trainer_state.json": '{"global_step": 7, "log_history": []}'}).step == 7


def test_several_architectures_are_joined() -> None:
    assert of({"config.json": '{"architectures": ["A", "B"]}'}).model == "A, B"


def test_an_adapter_names_its_base_model_only_where_there_is_no_config() -> None:
    adapter = '{"base_model_name_or_path": "org/base"}'
    said = of({"adapter_config.json": adapter})
    assert (said.model, said.inference_ready) == ("org/base", False)
    assert of({"adapter_config.json": adapter, "config.json": "{}"}).model is None


def test_only_files_at_the_checkpoints_root_speak_for_it() -> None:
    assert of({"old/trainer_state.json": json.dumps(STATE), "unet/config.json": json.dumps(CONFIG)}) == Metadata()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "is cut off, or is not JSON"),
        (json.dumps(STATE)[:-9], "is cut off, or is not JSON"),
        ("hello", "is cut off, or is not JSON"),
        (b"\xff\xff", "is cut off, or is not JSON"),
        ("[]", "is not a JSON object"),
        ('{"lr": 0.1}', "is not a Trainer's"),
        ("[" * 100_000, "is nested too deeply"),
        (b'{"a":"' + b"x" * (16 << 20) + b'"}', "is longer than 16 MiB"),
    ],
)
def test_a_broken_or_foreign_trainer_state_gives_empty_cells_and_a_note(text: bytes | str, part: str) -> None:
    said = of({"trainer_state.json": text, "config.json": json.dumps(CONFIG)})
    assert (said.step, said.train_loss, said.eval_loss, said.model) == (None, None, None, "GPT2LMHeadModel")
    (note,) = said.notes
    assert note.startswith("trainer_state.json ")
    assert part in note


@pytest.mark.parametrize("text", ["{", "3", "{}", '{"architectures": "GPT2"}', '{"architectures": []}',
                                  '{"architectures": [3]}', '{"architectures": {"a": 1}}'])  # fmt: skip
def test_a_broken_or_foreign_config_gives_empty_cells_and_a_note(text: str) -> None:
    said = of({"config.json": text})
    assert (said.model, said.version, said.inference_ready) == (None, None, False)
    assert "config.json" in said.notes[0]


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1" + "0" * 1000, '"2.5"', "[1]", "true", "1e999"])
def test_a_value_that_is_no_number_is_empty_with_a_note(value: str) -> None:
    said = of(
        {"trainer_state.json": f'{{"log_history": [{{"step": {value}, "loss": {value}, "eval_loss": {value}}}]}}'}
    )
    assert (said.step, said.train_loss, said.eval_loss) == (None, None, None)
    assert len(said.notes) == 3


def test_text_is_cut_and_loses_what_could_move_a_cursor() -> None:
    config = {"architectures": ["\x1b[2JA\n\u202eB\ud800"], "transformers_version": "5" * 300}
    said = of({"config.json": json.dumps(config)})
    assert said.model == "[2JAB"
    assert said.version == "5" * 200


def test_a_notes_file_name_loses_what_could_move_a_cursor() -> None:
    (note,) = of({"a\n\x1b\udcff.pt": zipped(b"\x80")}).notes
    assert note.startswith("a.pt ")


# -- torch


@pytest.mark.parametrize(
    ("format", "options"),
    [("torch zip", {}), ("torch legacy", {"_use_new_zipfile_serialization": False})],
    ids=["zip", "legacy"],
)
def test_a_training_state_of_torch_tells_step_loss_and_that_it_can_be_resumed(
    format: str, options: dict[str, bool]
) -> None:
    said = of({"ckpt.pt": saved(training_state(), **options)}, "ckpt.pt")
    held = 2 + 2 * 3  # weight and bias, and of each Adam's step and two moments
    assert said == Metadata(step=70, train_loss=0.5, resumable=True, weights=True, format=format, tensors=held)


@pytest.mark.parametrize("protocol", range(6))
def test_every_pickle_protocol_is_read(protocol: int) -> None:
    value = {"it": 3, "iteration": 4, "val_loss": 1, "training_loss": 2.5, "arch": "resnet", "epoch": 9}
    said = of({"a.ckpt": zipped(pickle.dumps(value, protocol))})
    assert said == Metadata(step=4, epoch=9.0, train_loss=2.5, eval_loss=1.0, model="resnet", tensors=0)


def test_strings_that_are_shared_through_the_memo_are_read() -> None:
    key = "".join(["lo", "ss"])
    assert of({"a.pt": saved([[key], {}])}).train_loss is None
    assert of({"a.pt": saved(OrderedDict([("names", [key, key]), (key, 1.5), ("model_name", key)]))}) == Metadata(
        train_loss=1.5, model="loss", tensors=0
    )


def test_an_epoch_is_no_step() -> None:
    assert of({"best.pt": saved({"epoch": 3})}, "best.pt").step is None


@pytest.mark.parametrize(
    ("value", "resumable", "weights"),
    [
        ({"w": torch.ones(1)}, False, True),
        (OrderedDict(w=torch.ones(1)), False, True),
        ([torch.ones(1)], False, True),
        (torch.nn.Parameter(torch.ones(1)), False, True),
        ({1: torch.ones(1)}, False, True),
        ({"state": {0: {"m": torch.ones(1)}}, "param_groups": []}, True, False),
        ({"opt": {"state": {0: torch.ones(1)}, "param_groups": []}}, True, False),
        ({"optimizer_states": [{"state": torch.ones(1)}], "state_dict": {"w": torch.ones(1)}}, True, True),
        ({"optimizer": None, "state_dict": {"w": torch.ones(1)}}, False, True),
        ({"optimizer": {"m": torch.ones(1)}, "rng": torch.ones(1), "loss": torch.ones(1)}, True, False),
        ({"config": {"lr": 0.1}}, False, False),
        (3, False, False),
    ],
)
def test_what_a_torch_file_holds_is_told_by_its_keys(value: object, resumable: bool, weights: bool) -> None:
    said = of({"a.pt": saved(value)})
    assert (said.resumable, said.weights, said.notes) == (resumable, weights, ())


def test_a_whole_module_holds_weights() -> None:
    assert of({"a.pt": saved(torch.nn.Linear(2, 2))}).weights


def test_of_several_torch_files_the_first_that_says_something_is_believed() -> None:
    said = of(
        {"b.pt": saved({"step": 2, "loss": 0.25}), "a.pt": saved({"step": 1}), "rng_state_0.pth": saved({"it": 9})}
    )
    assert (said.step, said.train_loss) == (1, 0.25)


def test_what_the_trainer_says_goes_before_what_a_file_of_torch_says() -> None:
    assert of({"trainer_state.json": json.dumps(STATE), "a.pt": saved({"step": 1})}).step == 20


@pytest.mark.parametrize("value", [-1, float("nan"), 1 << 70])
def test_a_number_in_a_torch_file_that_cannot_be_used_is_named(value: float) -> None:
    said = of({"a.pt": saved({"step": value, "loss": value, "w": torch.ones(1)})})
    assert said.step is None
    assert said.weights
    assert "a.pt: its step is not a step number" in said.notes


@pytest.mark.parametrize("name", ["optimizer.pt", "sub/optimizer_0.bin", ".metadata", "d/__0.metadata",
                                  "g/zero_pp_rank_0_mp_rank_00_optim_states.pt"])  # fmt: skip
def test_a_file_that_holds_optimizer_state_by_its_name_makes_it_resumable(name: str) -> None:
    said = of({name: b"x"})
    assert (said.resumable, said.weights) == (True, False)


@pytest.mark.parametrize("name", ["a.safetensors", "__0_0.distcp", "m.keras", "m.h5", "m.gguf", "m.onnx", "m.npz",
                                  "m.pkl", "pytorch_model.bin", "unet/model.pt"])  # fmt: skip
def test_a_file_that_holds_weights_by_its_name_counts(name: str) -> None:
    said = of({name: b"x" * 20})
    assert (said.resumable, said.weights) == (False, True)


@pytest.mark.parametrize("name", ["rng_state.pth", "random_states_0.pkl", "scheduler.pt", "training_args.bin", "a.txt"])
def test_a_file_beside_the_state_holds_no_weights(name: str) -> None:
    said = of({name: saved({"x": torch.ones(1)})})
    assert (said.weights, said.resumable, said.step, said.notes) == (False, False, None, ())


class Malicious:
    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.trap}",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("wrap", [zipped, bytes], ids=["zip", "bare"])
def test_a_malicious_pickle_is_not_executed_and_holds_no_weights(
    tmp_path: Path, protocol: int, wrap: Callable[[bytes], bytes]
) -> None:
    trap = tmp_path / "sprung"
    attack = pickle.dumps({"step": 5, "model": Malicious(trap)}, protocol)
    said = of({"a.pt": wrap(attack), "optimizer.pt": wrap(attack)})
    assert not trap.exists()
    assert not said.weights
    pickle.loads(attack)
    assert trap.exists(), "the trap does not work: the test shows nothing"


def test_a_pickle_with_too_many_opcodes_is_given_up() -> None:
    said = of({"a.pt": zipped(b"\x80\x02" + b"N0" * 1_600_000 + b".")})
    assert said == Metadata(notes=("a.pt has a pickle of more than 3000000 opcodes, which was not read",))


def test_a_pickle_longer_than_64_mib_is_not_read() -> None:
    said = of({"model.pt": zipped(bytes((64 << 20) + 1))})
    assert said == Metadata(weights=True, notes=("model.pt has a pickle longer than 64 MiB, which was not read",))


def test_a_compressed_pickle_is_not_torchs() -> None:
    assert of({"a.pt": zipped(pickle.dumps({"step": 1}), zipfile.ZIP_DEFLATED)}) == Metadata()


def test_a_torn_torch_file_gives_a_note() -> None:
    assert of({"a.pt": saved({"step": 1})[:-30]}).notes == ("a.pt is a zip file that is cut off or broken",)


def test_a_torch_file_without_check_sums_is_read() -> None:
    torch.serialization.set_crc32_options(False)
    try:
        data = saved({"step": 1})
    finally:
        torch.serialization.set_crc32_options(True)
    assert of({"a.pt": data}).step == 1


# -- safetensors, names, robustness


def test_the_free_text_of_a_safetensors_file_may_tell_step_and_losses() -> None:
    text = {"step": "12", "train_loss": "0.5", "eval_loss": "0.25"}
    assert of({"a.safetensors": save({"w": torch.ones(1)}, text)}) == Metadata(
        step=12, train_loss=0.5, eval_loss=0.25, weights=True, format="safetensors", tensors=1
    )


@pytest.mark.parametrize("value", ["", "-1", "nan", "1" * 50, "²", "x"])
def test_free_text_that_is_no_number_tells_nothing(value: str) -> None:
    said = of({"a.safetensors": save({"w": torch.ones(1)}, {"step": value, "loss": value if value != "-1" else "x"})})
    assert (said.step, said.train_loss) == (None, None)


def test_a_safetensors_header_longer_than_16_mib_is_not_read() -> None:
    (note,) = of({"a.safetensors": struct.pack("<Q", 1 << 40)}).notes
    assert note == "a.safetensors has a header longer than 16 MiB, which was not read"


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("checkpoint-500", 500),
        ("step_100", 100),
        ("global_step10", 10),
        ("epoch=3-step=100.ckpt", 100),
        ("ckpt_000100.pt", 100),
        ("checkpoints/iter_0000020", 20),
        ("ep0-ba10-rank0.pt", 10),
        ("checkpoint-7-step=300", 300),
        ("10", 10),
        ("epoch_3", None),
        ("epoch=3.ckpt", None),
        ("ckpt.pt", None),
        ("resnet50.pt", None),
        ("checkpoint_2025-06-05_09-07", None),
        ("step_" + "9" * 30, None),
        ("", None),
    ],
)
def test_a_units_name_tells_the_step_where_nothing_inside_does(name: str, step: int | None) -> None:
    assert of({"a.txt": b""}, name).step == step


def test_what_is_inside_goes_before_the_units_name() -> None:
    assert of({"a.pt": saved({"step": 4})}, "checkpoint-500").step == 4


@pytest.mark.parametrize(
    ("error", "note"),
    [
        (PermissionError(13, "Permission denied"), "could not be read: Permission denied"),
        (OSError(), "could not be read: the disk refuses"),
        (MemoryError(), "is too large to be read here"),
        (RecursionError(), "is cut off or broken"),
    ],
)
def test_a_file_that_cannot_be_read_gives_a_note(error: Exception, note: str) -> None:
    def refuse() -> BinaryIO:
        raise error

    said = extract("", {"config.json": refuse, "a.pt": refuse, "b.safetensors": refuse})
    assert said.weights
    assert said.notes == (f"config.json {note}", f"a.pt {note}", f"b.safetensors {note}")


def test_notes_do_not_grow_with_the_number_of_broken_files() -> None:
    assert len(of({f"{count}.pt": zipped(b"\x80") for count in range(50)}).notes) == 20


NAMES = ["trainer_state.json", "config.json", "adapter_config.json", "a.pt", "a.safetensors", "pytorch_model.bin"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["log_history", "step", "loss", "eval_loss", "architectures"]), inner)
    ),
    max_leaves=20,
)
OPCODES = st.lists(
    st.sampled_from([opcode.code.encode("latin-1") for opcode in pickletools.opcodes]) | st.binary(max_size=5)
).map(b"".join)


@given(st.sampled_from(NAMES), st.binary())
def test_no_bytes_make_it_raise(name: str, data: bytes) -> None:
    of({name: data})
    of({name: b"PK\x03\x04" + data})
    of({name: struct.pack("<Q", len(data)) + data})


@given(st.sampled_from(NAMES[:3]), JSON)
def test_no_json_makes_it_raise(name: str, value: object) -> None:
    said = of({name: json.dumps(value)})
    assert said.step is None or said.step >= 0


@given(OPCODES)
def test_no_opcodes_make_it_raise(data: bytes) -> None:
    of({"a.pt": zipped(data + b".")})
    of({"a.pt": b"\x80" + data})


@given(
    st.dictionaries(st.text(max_size=5), st.integers() | st.floats(allow_nan=False) | st.text() | st.none()),
    st.integers(0, 5),
)
def test_an_outline_has_the_items_of_the_dictionary(value: dict[str, object], protocol: int) -> None:
    top = outline(io.BytesIO(pickle.dumps(value, protocol)))
    assert getattr(top, "items", None) == value
