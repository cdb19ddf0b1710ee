from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_ckpt.model import Shape, Unit
from fuse_ckpt.staging.units import UnitRules, is_companion, is_log, is_step_like, is_temporary, mark_of

RULES = UnitRules()


def directory(name: str) -> Unit:
    return Unit(name, Shape.DIRECTORY)


def flat(name: str) -> Unit:
    return Unit(name, Shape.FLAT)


ROOT = Unit("", Shape.ROOT)


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "tokenizer_config.json",
        "vocab.txt",
        "merges.txt",
        "adapter_model.safetensors",
        "training_args.bin",
        "trainer_state.json",
        "optimizer.pt",
        "rng_state_1.pth",
        "all_results.json",
        "modules.json",
    ],
)
def test_the_hugging_face_set_at_the_root_is_the_root_checkpoint(name: str) -> None:
    assert RULES.unit_of(name) == ROOT


def test_a_readme_at_the_root_belongs_to_the_root_checkpoint_but_starts_none() -> None:
    assert RULES.unit_of("README.md") is None
    assert RULES.member_of("README.md") == ROOT


@pytest.mark.parametrize(
    "path",
    [
        "events.out.tfevents.123.host",
        "runs/a/b.pt",
        "exp/wandb/file.pt",
        "lightning_logs/version_0/metrics.csv",
        "lightning_logs/version_0/hparams.yaml",
        "train.log",
        "metrics.jsonl",
        "notes.txt",
        "checkpoints/loss.png",
        "checkpoint-5/events.out.tfevents.1",
        "checkpoint-5/logs/a.pt",
    ],
)
def test_logs_start_nothing(path: str) -> None:
    assert is_log(path)
    assert RULES.unit_of(path) is None


@pytest.mark.parametrize("path", ["checkpoint-5/vocab.txt", "best/metrics.csv", "checkpoints/best/readme.md"])
def test_a_table_or_text_inside_a_unit_is_part_of_it(path: str) -> None:
    assert not is_log(path)
    assert RULES.unit_of(path) is not None


@pytest.mark.parametrize(
    "path", ["latest", "latest_checkpointed_iteration.txt", "last_checkpoint", "zero_to_fp32.py", "checkpoint-5/latest"]
)
def test_pointers_start_nothing(path: str) -> None:
    assert is_companion(path)
    assert RULES.unit_of(path) is None


def test_a_symlink_starts_nothing_and_belongs_to_the_unit_around_it() -> None:
    assert is_companion("last.ckpt", symlink=True)
    assert RULES.unit_of("last.ckpt", symlink=True) is None
    assert RULES.unit_of("checkpoint-5/link", symlink=True) is None
    assert RULES.member_of("checkpoint-5/link", symlink=True) == directory("checkpoint-5")
    assert RULES.member_of("last.ckpt", symlink=True) is None


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("checkpoint-500/model.safetensors", "checkpoint-500"),
        ("checkpoint-2/global_step2/a.pt", "checkpoint-2"),
        ("global_step10/mp_rank_00_model_states.pt", "global_step10"),
        ("run7/epoch_3/a/b/c", "run7/epoch_3"),
        ("checkpoints/step_5/optimizer_0/.metadata", "checkpoints/step_5"),
        ("10/default/commit_success.txt", "10"),
        ("release/mp_rank_00/model.pt", "release"),
        ("lightning_logs/version_0/checkpoints/epoch=1-step=2.ckpt/.metadata",
         "lightning_logs/version_0/checkpoints/epoch=1-step=2.ckpt"),
    ],
)  # fmt: skip
def test_the_topmost_step_like_directory_is_the_unit(path: str, name: str) -> None:
    assert RULES.unit_of(path) == directory(name)


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("checkpoints/last.ckpt", flat("checkpoints/last.ckpt")),
        ("checkpoints/best/m.pt", directory("checkpoints/best")),
        ("models/unet/a/b.bin", directory("models/unet")),
        ("lightning_logs/version_3/checkpoints/last.ckpt", flat("lightning_logs/version_3/checkpoints/last.ckpt")),
        ("my_run/checkpoints/a.pt", flat("my_run/checkpoints/a.pt")),
    ],
)
def test_directly_below_a_container_a_directory_is_a_unit_and_a_file_is_one(path: str, unit: Unit) -> None:
    assert RULES.unit_of(path) == unit


@pytest.mark.parametrize(
    ("path", "name"),
    [("best/m.pt", "best"), ("best/meta.json", "best"), ("pipe/unet/w.safetensors", "pipe"), ("eval/r.json", "eval")],
)
def test_any_other_first_level_directory_is_a_unit(path: str, name: str) -> None:
    assert RULES.unit_of(path) == directory(name)


@pytest.mark.parametrize("name", ["ckpt.pt", "step_5.pt", "results.json", "epoch=3-step=100.ckpt", "weird\udcff"])
def test_any_other_file_at_the_root_is_a_unit_of_its_own(name: str) -> None:
    assert RULES.unit_of(name) == flat(name)


def test_files_that_differ_only_in_their_rank_are_one_unit_named_by_rank_0() -> None:
    names = ["ep1-ba2-rank0.pt", "ep1-ba2-rank1.pt", "ep1-ba2-rank12.pt", "ep1-ba3-rank0.pt"]
    unit = flat("ep1-ba2-rank0.pt")
    assert RULES.unit_of(names[2]) == unit
    assert RULES.flat_members(unit, names) == names[:3]


def test_a_lora_rank_is_a_size_and_no_process() -> None:
    assert RULES.unit_of("lora_rank8.pt") != RULES.unit_of("lora_rank16.pt")


def test_the_shards_of_an_index_come_together_under_its_name() -> None:
    names = ["net.safetensors.index.json", "net-00001-of-00002.safetensors", "net-00002-of-00002.safetensors", "x.pt"]
    assert RULES.flat_members(flat("net.safetensors.index.json"), names) == sorted(names[:3])
    keras = ["big.weights.json", "big_00000.weights.h5", "big_00001.weights.h5", "epoch_00001.weights.h5"]
    assert RULES.flat_members(flat("big.weights.json"), keras) == keras[:3]


def test_the_shards_of_a_distributed_checkpoint_at_the_root_come_together() -> None:
    names = [".metadata", "__0_0.distcp", "__1_0.distcp"]
    assert RULES.flat_members(flat(".metadata"), [*names, "a.pt"]) == names


def test_the_members_of_a_flat_unit_are_looked_up_in_its_own_directory() -> None:
    assert RULES.flat_members(flat("ckpts/a-rank0.pt"), ["a-rank0.pt", "a-rank1.pt"]) == ["a-rank0.pt", "a-rank1.pt"]


@pytest.mark.parametrize(
    "name",
    [
        ".tmpAbC123",
        "tmp4k_z9q1x",
        "model.pt.tmp",
        "x.tmp.npz",
        "a.part",
        "a.partial",
        "5.orbax-checkpoint-tmp",
        "5.orbax-checkpoint-tmp-17",
        "a.incomplete",
        "a.pt~",
        "tmp-checkpoint-5",
    ],
)
def test_temporary_names_are_known(name: str) -> None:
    assert is_temporary(name)


@pytest.mark.parametrize("name", ["tmp", "tmpa", "template.pt", "temperature-5.pt", "a.tmpl", "checkpoint-5"])
def test_ordinary_names_are_not_temporary(name: str) -> None:
    assert not is_temporary(name)


@pytest.mark.parametrize("path", ["checkpoint-5/.tmpA1", "5.orbax-checkpoint-tmp/a", "ckpt.pt.tmp", "best/x.tmp/y"])
def test_a_temporary_name_anywhere_in_the_path_starts_nothing(path: str) -> None:
    assert RULES.unit_of(path) is None


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("checkpoint-5/.tmpA1", directory("checkpoint-5")),
        ("checkpoint-5/runs/events.out.tfevents.1", directory("checkpoint-5")),
        ("checkpoints/best/latest", directory("checkpoints/best")),
        ("5.orbax-checkpoint-tmp/a", None),
        ("runs/checkpoint-5/a.pt", None),
        (".tmpA1", None),
        ("train.log", None),
        ("checkpoints/train.log", None),
        ("config.json", ROOT),
        ("ckpt.pt", flat("ckpt.pt")),
    ],
)
def test_a_file_that_starts_nothing_is_a_member_of_the_directory_it_lies_in(path: str, unit: Unit | None) -> None:
    assert RULES.member_of(path) == unit


@pytest.mark.parametrize(
    ("globs", "path", "unit"),
    [
        (["exp*/run*"], "exp1/run2/a/b.pt", directory("exp1/run2")),
        (["exp*"], "exp1/checkpoint-5/b.pt", directory("exp1")),
        (["**/*.ckpt"], "runs/a/b.ckpt", flat("runs/a/b.ckpt")),
        (["runs/*/weights/"], "runs/train/weights/last.pt", directory("runs/train/weights")),
        (["config.json"], "config.json", flat("config.json")),
        (["*.pt"], "best/m.pt", directory("best")),
        ([""], "best/m.pt", directory("best")),
    ],
)
def test_a_glob_overrides_every_rule(globs: list[str], path: str, unit: Unit) -> None:
    assert UnitRules(globs).unit_of(path) == unit


def test_a_log_inside_a_directory_that_a_glob_names_is_its_member() -> None:
    rules = UnitRules(["runs/*"])
    assert rules.member_of("runs/train/.tmpA1") is None  # below a log directory: only what starts a unit counts
    assert rules.unit_of("runs/train/metrics.csv") == directory("runs/train")


@pytest.mark.parametrize("name", ["checkpoint-5", "CKPT_3", "my-iter9", "model.step=4", "ep1-ba2", "007", "release"])
def test_step_like_names_are_known(name: str) -> None:
    assert is_step_like(name)


@pytest.mark.parametrize("name", ["version_3", "checkpoints", "deep2", "exp1", "epoch", "release2", "10a", "٣"])
def test_other_names_are_not_step_like(name: str) -> None:
    assert not is_step_like(name)


@given(st.lists(st.text(st.characters(blacklist_characters="/\0"), min_size=1), min_size=1, max_size=5))
def test_a_unit_is_the_path_itself_or_a_directory_above_it_or_a_set_beside_it(parts: list[str]) -> None:
    path = "/".join(parts)
    unit = RULES.unit_of(path)
    assert unit is None or path.startswith(f"{unit.prefix}/") or not unit.prefix
    assert unit is None or RULES.member_of(path) == unit


@pytest.mark.parametrize(
    ("glob", "path", "unit"),
    [
        ("**", "a/b.pt", directory("a")),
        ("**/**/x", "a/x/b.pt", directory("a/x")),
        ("a/**/x", "a/x/b.pt", directory("a/x")),
        ("a/**", "a/b/c.pt", directory("a")),
        ("[ab]*", "beta/c.pt", directory("beta")),
        ("[", "[/c.pt", directory("[")),
        ("exp\n*", "exp\n1/c.pt", directory("exp\n1")),
        ("//exp//run*/", "exp/run1/c.pt", directory("exp/run1")),
        ("*.tmp", "x.tmp/c.pt", None),
        ("EXP", "exp/c.pt", directory("exp")),
    ],
)
def test_unusual_globs_fit_what_they_say(glob: str, path: str, unit: Unit | None) -> None:
    assert UnitRules([glob]).unit_of(path) == unit


def test_no_glob_takes_long_on_any_path() -> None:
    path = "/".join(["a" * 10] * 2000)
    globs = ["/".join(["**", "a*a*a*a*a*a*b"] * 20), "/".join(["**"] * 500) + "/x", "*/" * 1999 + "y"]
    begun = time.process_time()
    assert UnitRules(globs).unit_of(path) == directory("a" * 10)
    assert time.process_time() - begun < 5


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("logs/net/version_0/checkpoints/epoch=1.ckpt", flat("logs/net/version_0/checkpoints/epoch=1.ckpt")),
        ("runs/train/exp/weights/best.pt", flat("runs/train/exp/weights/best.pt")),
        ("runs/train/exp/weights/epoch10/a.pt", directory("runs/train/exp/weights/epoch10")),
        ("tb/checkpoints/step_5/x/y.pt", directory("tb/checkpoints/step_5")),
        ("logs/net/version_0/hparams.json", None),
        ("logs/net/version_0/checkpoints/metrics.csv", None),
        ("wandb/run-1/files/checkpoints/x.pt", None),
        ("mlruns/0/1/artifacts/checkpoints/x.pt", None),
        ("logs/weights.pt", None),
    ],
)
def test_a_directory_of_saves_among_the_logs_holds_checkpoints(path: str, unit: Unit | None) -> None:
    assert RULES.unit_of(path) == unit


def test_a_mark_that_says_unfinished_starts_nothing_and_is_known_by_what_it_stands_beside() -> None:
    assert RULES.unit_of("checkpoints/step=10-last-unfinished") is None
    for name in ("step=10-last.ckpt", "step=10-last-EMA.ckpt", "step=10-last.nemo", "step=10-last"):
        assert mark_of(flat(f"checkpoints/{name}")) == "checkpoints/step=10-last-unfinished"
