"""What is in the files of a checkpoint: tensors, and what its pickles would do. Files are read, never loaded."""

from __future__ import annotations

from fuse_ckpt.contents.comparing import Change, Comparison, FileChange, TensorChange, compare
from fuse_ckpt.contents.listing import Contents, look
from fuse_ckpt.contents.scanned import ScannedFile, scan
from fuse_ckpt.contents.sums import Total, summed
from fuse_ckpt.contents.tensors import Problem, Tensor

__all__ = [
    "Change",
    "Comparison",
    "Contents",
    "FileChange",
    "Problem",
    "ScannedFile",
    "Tensor",
    "TensorChange",
    "Total",
    "compare",
    "look",
    "scan",
    "summed",
]
