"""What the checkpoints of frameworks other than Hugging Face's Trainer say, as far as their form goes: that each
library still writes this form is looked at in tests/frameworks/."""

from __future__ import annotations

import argparse
import io
import json
import pickle
import pickletools
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from fuse_ckpt.metadata import extract
from fuse_ckpt.metadata.pickles import counted_outline
from fuse_ckpt.metadata.symbols import Instance, Outline
from fuse_ckpt.model import Metadata
from tests.test_metadata import of, opener, saved, training_state, zipped

W = torch.ones(2)


def lightning(**more: object) -> dict[str, object]:
    """A checkpoint of Lightning's ModelCheckpoint, with `more` in place of what is named."""
    watcher = {
        "monitor": "val_loss",
        "best_model_score": torch.tensor(0.25),
        "best_model_path": "/out/epoch=1-step=8.ckpt",
        "current_score": torch.tensor(0.5),
    }
    return {
        "epoch": 1,
        "global_step": 8,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": OrderedDict(w=W),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'val_loss'}": watcher},
        "optimizer_states": [{"state": {}, "param_groups": []}],
        "lr_schedulers": [],
    } | more


def watching(monitor: object, **scores: object) -> dict[str, object]:
    return lightning(callbacks={"ModelCheckpoint": {"monitor": monitor, **scores}})


WHOLE = {"a.ckpt": saved(lightning()), "b.pt": saved(training_state()), "c.safetensors": save({"w": W})}


# -- Lightning


def test_a_checkpoint_of_lightning_tells_step_epoch_version_and_the_loss_that_it_was_saved_at() -> None:
    assert of({"epoch=1-step=8.ckpt": saved(lightning())}, "epoch=1-step=8.ckpt") == Metadata(
        step=8, epoch=1.0, eval_loss=0.5, version="2.6.6", resumable=True, weights=True, format="torch zip", tensors=3
    )


@pytest.mark.parametrize(
    ("monitor", "train_loss", "eval_loss"),
    [
        ("val_loss", None, 0.5),
        ("valid/loss", None, 0.5),
        ("Validation-Loss", None, 0.5),
        ("loss/val", None, 0.5),
        ("eval_loss_epoch", None, 0.5),
        ("train_loss", 0.5, None),
        ("loss", 0.5, None),
        ("val_accuracy", None, None),
        ("interval_loss", None, None),
        ("val_glossary", None, None),
        (None, None, None),
        (3, None, None),
    ],
)
def test_a_watched_metric_is_a_loss_only_if_its_name_says_so(
    monitor: object, train_loss: float | None, eval_loss: float | None
) -> None:
    said = of({"a.ckpt": saved(watching(monitor, current_score=torch.tensor(0.5)))})
    assert (said.train_loss, said.eval_loss, said.notes) == (train_loss, eval_loss, ())


def test_the_best_score_counts_where_no_current_one_is_told() -> None:
    best = torch.tensor(0.25)
    assert of({"a.ckpt": saved(watching("val_loss", best_model_score=best))}).eval_loss == 0.25
    assert of({"a.ckpt": saved(watching("val_loss", best_model_score=best, current_score=None))}).eval_loss is None


def test_of_several_watchers_the_first_that_watches_a_loss_is_believed() -> None:
    callbacks = {
        "EarlyStopping": {"wait_count": 0},
        "a": {"monitor": "val_acc", "current_score": torch.tensor(0.9)},
        "b": {"monitor": "val_loss", "current_score": torch.tensor(0.5)},
        "c": {"monitor": "val_loss_ema", "current_score": torch.tensor(0.75)},
    }
    assert of({"a.ckpt": saved(lightning(callbacks=callbacks))}).eval_loss == 0.5


def test_a_checkpoint_of_weights_alone_is_not_resumable() -> None:
    value = {key: value for key, value in lightning().items() if key not in ("optimizer_states", "lr_schedulers")}
    assert not of({"a.ckpt": saved(value)}).resumable


# -- numbers that are tensors


@pytest.mark.parametrize(
    ("loss", "read"),
    [
        (torch.tensor(0.5), 0.5),
        (torch.tensor(0.5, dtype=torch.float64), 0.5),
        (torch.tensor(0.5, dtype=torch.float16), 0.5),
        (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        (torch.tensor(2), 2.0),
        (torch.tensor(2, dtype=torch.int32), 2.0),
        (torch.tensor(2, dtype=torch.int16), 2.0),
        (torch.tensor(2, dtype=torch.int8), 2.0),
        (torch.tensor(2, dtype=torch.uint8), 2.0),
        (torch.nn.Parameter(torch.tensor(0.5)), 0.5),
        (torch.tensor([0.25, 0.5])[1], 0.5),
        (torch.tensor([0.5]), None),
        (torch.tensor(True), None),
        (torch.tensor(0.5j), None),
    ],
)
def test_a_loss_that_is_a_tensor_of_one_number_is_read_from_its_storage(loss: torch.Tensor, read: float | None) -> None:
    said = of({"a.pt": saved({"loss": loss, "w": W})})
    assert (said.train_loss, said.notes) == (read, ())


def test_a_tensor_of_nan_gives_a_note() -> None:
    said = of({"a.pt": saved({"loss": torch.tensor(float("nan"))})})
    assert (said.train_loss, said.notes) == (None, ("a.pt: its training loss is not a finite number",))


def test_a_number_of_a_tensor_in_torchs_old_format_is_not_read() -> None:
    said = of({"a.pt": saved({"step": torch.tensor(3), "w": W}, _use_new_zipfile_serialization=False)})
    assert (said.step, said.weights, said.notes) == (None, True, ())


def test_a_tensor_beyond_its_storage_gives_a_note() -> None:
    parts = {"loss": torch.tensor([0.25, 0.5])[1]}
    data = saved(parts).replace(b"K\x01)", b"K\x63)", 1)  # the offset, 1, before the empty tuple of sizes
    assert data != saved(parts), "the bytes that were to be changed are not there"
    assert of({"a.pt": data}).notes == ("a.pt has a tensor that reaches beyond its data",)


# -- torch.distributed.checkpoint


def distributed(state: dict[str, object], top: Path) -> dict[str, bytes]:
    dcp.save(state, checkpoint_id=top, no_dist=True)
    return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}


def test_a_distributed_checkpoint_tells_what_its_metadata_names(tmp_path: Path) -> None:
    state = training_state() | {"epoch": 3, "eval_loss": 0.25}
    files = distributed(state, tmp_path)
    assert of(files, "step-9") == Metadata(
        step=70, epoch=3.0, train_loss=0.5, eval_loss=0.25, resumable=True, weights=True, format="torch distributed",
        tensors=8,
    )  # fmt: skip


def test_a_distributed_checkpoint_without_optimizer_state_is_not_resumable(tmp_path: Path) -> None:
    said = of(distributed({"model": {"w": W}}, tmp_path), "step-9")
    assert (said.step, said.resumable, said.weights) == (9, False, True)


def test_model_and_optimizer_in_directories_of_their_own_are_told_apart(tmp_path: Path) -> None:
    files = {f"pytorch_model_fsdp_0/{k}": v for k, v in distributed({"w": W}, tmp_path / "a").items()}
    model = of(files)
    files |= {f"optimizer_0/{k}": v for k, v in distributed({"state": {"w": W}}, tmp_path / "b").items()}
    both = of(files)
    assert (model.resumable, both.resumable) == (False, True)
    assert (model.weights, both.weights, both.tensors) == (True, True, 2)


def test_numbers_below_the_top_of_a_distributed_checkpoint_are_read_where_they_are_nobody_elses(tmp_path: Path) -> None:
    state: dict[str, object] = {
        "trainer": {"step": 5},
        "optimizer": {"step": 99},
        "data": {"loader": {"epoch": 7}},
        "w": W,
    }
    said = of(distributed(state, tmp_path))
    assert (said.step, said.epoch) == (5, None)


def test_a_distributed_checkpoint_whose_ranks_files_are_not_there_tells_what_it_can(tmp_path: Path) -> None:
    files = distributed(training_state(), tmp_path)
    said = of({".metadata": files[".metadata"]})
    assert (said.step, said.resumable, said.weights, said.tensors) == (None, True, True, 8)
    torn = of({".metadata": files[".metadata"], "__0_0.distcp": b"torn"})
    assert (torn.step, torn.tensors, torn.notes) == (None, 8, ())


@pytest.mark.parametrize(
    ("data", "note"),
    [
        (b"", ".metadata is not a pickle, or is cut off"),
        (b"hello", ".metadata is not a pickle, or is cut off"),
        (b"\x80\x02", ".metadata is cut off or broken"),
        (b"\x80" + b"N" * (64 << 20), ".metadata is longer than 64 MiB and was not read"),
    ],
    ids=["empty", "text", "torn", "long"],
)
def test_a_broken_metadata_file_gives_a_note_and_what_the_names_tell(data: bytes, note: str) -> None:
    said = of({".metadata": data, "__0_0.distcp": b"x"})
    assert (said.notes, said.resumable, said.weights, said.format) == ((note,), True, True, "torch distributed")


def test_a_metadata_file_of_another_program_tells_nothing() -> None:
    said = of({".metadata": pickle.dumps({"state_dict_metadata": {}})})
    assert (said.notes, said.tensors, said.resumable) == ((), None, True)


# -- DeepSpeed, Megatron, Accelerate


def test_deepspeed_tells_its_step_and_version_and_that_optimizer_state_is_beside() -> None:
    module = {"module": OrderedDict(w=W), "optimizer": None, "global_steps": 12, "ds_version": "0.19.8"}
    files = {
        "mp_rank_00_model_states.pt": saved(module),
        "zero_pp_rank_0_mp_rank_00_optim_states.pt": saved({"optimizer_state_dict": {"zero_stage": 1, "m": W}}),
    }
    assert of(files, "global_step12") == Metadata(
        step=12, version="0.19.8", resumable=True, weights=True, format="torch zip", tensors=2
    )


def test_megatrons_both_forms_tell_their_iteration() -> None:
    args = argparse.Namespace(lr=0.1)
    old = {"mp_rank_00/model_optim_rng.pt": saved({"args": args, "iteration": 10, "model": {"w": W}, "optimizer": {}})}
    assert of(old, "iter_0000010").step == 10
    new: dict[str, bytes | str] = {
        "common.pt": saved({"args": args, "iteration": 20, "optimizer": {"param_groups": []}}),
        "metadata.json": "{}",
    }
    said = of(new, "release")
    assert (said.step, said.resumable, said.weights) == (20, True, False)


def test_accelerate_numbers_its_saves_which_is_no_step() -> None:
    files = {"model.safetensors": save({"w": W}), "optimizer.bin": saved({}), "random_states_0.pkl": saved({"step": 1})}
    assert of(files, "checkpoints/checkpoint_3").step is None
    assert of(files, "checkpoints/step_3").step == 3
    counted = files | {"custom_checkpoint_0.pkl": saved({"step": 40, "epoch": 2})}
    said = of(counted, "checkpoints/checkpoint_3")
    assert (said.step, said.epoch, said.resumable, said.weights) == (40, 2.0, True, True)
    assert of({"model.safetensors": save({"w": W})}, "checkpoints/checkpoint_3").step == 3, "somebody else's"


# -- PEFT, diffusers, sentence-transformers, results


def test_an_adapter_names_its_base_model_and_pefts_version() -> None:
    config = json.dumps({"base_model_name_or_path": "org/base", "peft_version": "0.21.0", "peft_type": "LORA"})
    said = of({"adapter_config.json": config, "adapter_model.safetensors": save({"a": W, "b": W.clone()})})
    assert said == Metadata(model="org/base", version="0.21.0", weights=True, format="safetensors", tensors=2)


def test_a_pipeline_of_diffusers_is_its_class() -> None:
    index = json.dumps({"_class_name": "DDPMPipeline", "_diffusers_version": "0.42.1", "unet": ["diffusers", "x"]})
    assert of({"model_index.json": index, "unet/diffusion_pytorch_model.safetensors": save({"w": W})}) == Metadata(
        model="DDPMPipeline", version="0.42.1", weights=True, format="safetensors", tensors=1
    )
    (note,) = of({"model_index.json": "{}"}).notes
    assert note == "model_index.json names no _class_name: it is not a pipeline's"


def test_a_single_model_of_diffusers_is_its_class_and_not_ready_for_inference() -> None:
    said = of({"config.json": '{"_class_name": "UNet2DModel", "_diffusers_version": "0.42.1"}'})
    assert said == Metadata(model="UNet2DModel", version="0.42.1")


def test_sentence_transformers_says_its_version_where_no_model_lies_at_the_root() -> None:
    own = '{"__version__": {"sentence_transformers": "6.2.0"}, "model_type": "SentenceTransformer"}'
    said = of({"config_sentence_transformers.json": own, "modules.json": "[]"})
    assert (said.model, said.version) == ("SentenceTransformer", "6.2.0")
    config = '{"architectures": ["BertModel"], "transformers_version": "5.23.0"}'
    said = of({"config_sentence_transformers.json": own, "config.json": config})
    assert (said.model, said.version) == ("BertModel", "5.23.0")
    assert of({"config_sentence_transformers.json": "{}"}).model == "SentenceTransformer"


def test_the_results_of_a_run_count_where_the_trainer_says_nothing() -> None:
    results = '{"epoch": 3.0, "train_loss": 9.0, "eval_loss": 1.5, "eval_samples": 4}'
    assert of({"all_results.json": results}) == Metadata(epoch=3.0, train_loss=9.0, eval_loss=1.5)
    state = '{"global_step": 7, "log_history": [{"loss": 2.5, "step": 7}]}'
    assert of({"all_results.json": results, "trainer_state.json": state}).train_loss == 2.5


# -- format and count


def test_the_format_is_that_of_the_weights_and_the_count_is_of_all() -> None:
    files = {
        "model.safetensors": save({"a": W, "b": W.clone()}),
        "optimizer.pt": saved({"state": {0: {"m": W}}, "param_groups": []}),
    }
    said = of(files)
    assert (said.format, said.tensors) == ("safetensors", 3)


def test_two_formats_of_weights_are_both_named() -> None:
    said = of({"a.safetensors": save({"a": W}), "b.pt": saved({"model": {"w": W}})})
    assert (said.format, said.tensors) == ("torch zip, safetensors", 2)


@pytest.mark.parametrize(
    ("name", "format"),
    [("m.keras", "Keras"), ("m.h5", "HDF5"), ("m.gguf", "GGUF"), ("m.onnx", "ONNX"), ("m.npz", "NumPy"),
     ("__0_0.distcp", "torch distributed")],
)  # fmt: skip
def test_what_is_only_known_by_its_name_is_not_counted(name: str, format: str) -> None:
    said = of({name: b"x", "optimizer.pt": saved({"state": {0: W}})})
    assert (said.format, said.tensors) == ("torch zip" if said.format == "torch zip" else format, None)
    assert of({name: b"x"}).format == format


def test_tensors_are_not_counted_where_a_file_could_not_be_read() -> None:
    said = of({"model.safetensors": b"\xff" * 8, "optimizer.pt": saved({"state": {0: W}})})
    assert (said.tensors, len(said.notes)) == (None, 1)


def test_files_that_are_too_many_to_be_walked_leave_the_count_unknown() -> None:
    one = saved({"module": {"w": W}})
    opened: list[int] = []

    def count() -> io.BytesIO:
        opened.append(1)
        return io.BytesIO(one)

    said = extract("x", {f"rank_{number}/model.pt": count for number in range(100)})
    assert (len(opened), said.tensors, said.weights) == (64, None, True)


def test_a_parameter_and_tensors_of_one_storage_are_each_counted_once() -> None:
    shared = torch.ones(4)
    value = {"p": torch.nn.Parameter(W), "a": shared[:2], "b": shared[2:], "list": [W.clone(), (W.clone(),)]}
    assert of({"a.pt": saved(value)}).tensors == 5


def test_a_whole_module_is_its_class_and_its_tensors() -> None:
    said = of({"a.pt": saved(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)))})
    assert (said.model, said.weights, said.tensors) == ("Sequential", True, 2 + 5)


# -- hostile pickles


def test_an_object_is_its_class_and_its_attributes() -> None:
    top, tensors = counted_outline(io.BytesIO(pickle.dumps(argparse.Namespace(lr=0.5, name="x"), 2)))
    assert isinstance(top, Instance)
    assert (top.function.name, top.attribute("lr"), top.attribute("nothing"), tensors) == ("Namespace", 0.5, None, 0)


def test_tuples_inside_tuples_do_not_pile_up() -> None:
    top, _ = counted_outline(io.BytesIO(b"\x80\x02)" + b"\x85" * 100_000 + b"."))
    depth = 0
    while hasattr(top, "parts") and top.parts:
        top, depth = top.parts[0], depth + 1
    assert depth < 10


def test_a_pickle_that_doubles_what_it_holds_at_every_step_takes_no_time() -> None:
    doubling = b"".join(b"q%c0h%ch%c\x86" % (n, n, n) for n in range(200))
    counted_outline(io.BytesIO(b"\x80\x02)" + doubling + b"."))


@pytest.mark.parametrize("operation", [b"(", b"]", b"N", b"K\x01"])
def test_a_pickle_of_one_operation_without_end_is_given_up(operation: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuse_ckpt.metadata.pickles.OPCODES_MAX", 50_000)
    said = of({"a.pt": zipped(b"\x80\x02" + operation * 60_000 + b".")})
    assert said.notes == ("a.pt has a pickle of more than 50000 opcodes, which was not read",)


@pytest.mark.parametrize("operation", [b"}", b"\x85", b"q\x00}"])
def test_a_pickle_of_too_many_objects_is_given_up(operation: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuse_ckpt.metadata.pickles.CONTAINERS_MAX", 1000)
    said = of({"a.pt": zipped(b"\x80\x02)" + operation * 1001 + b".")})
    assert said.notes == ("a.pt has a pickle of more than 1000 objects, which was not read",)


def test_a_dictionary_that_holds_itself_is_read() -> None:
    value: dict[str, object] = {"step": 3}
    value["self"] = value
    top, _ = counted_outline(io.BytesIO(pickle.dumps(value, 2)))
    assert isinstance(top, Outline)
    assert top.items["self"] is top
    assert of({"a.pt": saved(value)}).step == 3


def test_every_opcode_is_known() -> None:
    """A new one would be walked by its effect on the stack alone; this says when there is one to think of."""
    assert len(pickletools.opcodes) == 68


@given(st.sampled_from([".metadata", "__3.metadata", "a.pkl", "model_index.json", "all_results.json"]), st.binary())
def test_no_bytes_make_it_raise(name: str, data: bytes) -> None:
    of({name: data})
    of({name: b"\x80" + data, "__0_0.distcp": data})


@given(st.data())
def test_no_change_of_a_byte_makes_it_raise(data: st.DataObject) -> None:
    for name, whole in WHOLE.items():
        at = data.draw(st.integers(0, len(whole) - 1))
        of({name: whole[:at] + bytes([data.draw(st.integers(0, 255))]) + whole[at + 1 :]})


def test_openers_are_closed() -> None:
    opened: list[io.BytesIO] = []

    def remember(data: bytes) -> io.BytesIO:
        opened.append(io.BytesIO(data))
        return opened[-1]

    files = {"a.pt": saved({"w": W}), "b.safetensors": save({"w": W}), "config.json": b"{}", ".metadata": b"\x80\x02N."}
    extract("x", {name: lambda data=data: remember(data) for name, data in files.items()})  # type: ignore[misc]
    assert len(opened) == 4
    assert all(file.closed for file in opened)
    assert opener(b"x")().read() == b"x"
