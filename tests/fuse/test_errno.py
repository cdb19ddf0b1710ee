"""Every error there is has a number that a program can understand."""

from __future__ import annotations

import errno
import inspect

import pytest

from fuse_ckpt import errors
from fuse_ckpt.errors import FuseCkptError
from fuse_ckpt.fuse.errno import is_expected, number_of

EVERY = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, FuseCkptError)]


def made(kind: type[FuseCkptError]) -> FuseCkptError:
    return kind("words")


@pytest.mark.parametrize("kind", EVERY)
def test_every_error_of_ours_is_expected_and_has_a_number(kind: type[FuseCkptError]) -> None:
    assert number_of(made(kind)) in errno.errorcode
    assert is_expected(made(kind))


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        (errors.UnknownCheckpoint, errno.ENOENT),
        (errors.UnknownJob, errno.ENOENT),
        (errors.CorruptBlob, errno.EIO),
        (errors.CheckpointLeased, errno.EBUSY),
        (errors.InvalidReference, errno.EINVAL),
        (errors.StoreUnusable, errno.EIO),
    ],
)
def test_a_number_says_what_kind_of_error_it_is(kind: type[FuseCkptError], number: int) -> None:
    assert number_of(made(kind)) == number


def test_an_error_that_is_added_later_has_the_number_of_its_parent() -> None:
    class Newer(errors.Busy):
        """Of a subclass that the table does not name."""

    assert number_of(Newer("words")) == errno.EBUSY


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.ENOENT, errno.EROFS, errno.ESTALE])
def test_the_number_of_the_disk_passes_through(number: int) -> None:
    assert number_of(OSError(number, "words")) == number
    assert is_expected(OSError(number, "words"))


@pytest.mark.parametrize("error", [OSError(), FileNotFoundError(), OSError("words"), OSError(0, "words")])
def test_an_os_error_without_a_number_is_eio(error: OSError) -> None:
    assert number_of(error) == errno.EIO


@pytest.mark.parametrize("error", [OSError(), FileNotFoundError()])
def test_an_os_error_without_a_number_is_a_bug(error: OSError) -> None:
    assert not is_expected(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a bug"),
        KeyError(7),
        AssertionError(),
        ZeroDivisionError(),
        BaseExceptionGroup("x", [ValueError()]),
    ],
)
def test_a_bug_is_eio_and_not_expected(error: BaseException) -> None:
    assert number_of(error) == errno.EIO
    assert not is_expected(error)


def test_no_memory_is_enomem() -> None:
    assert number_of(MemoryError()) == errno.ENOMEM
