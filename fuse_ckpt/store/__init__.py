"""The store: blobs, manifests, and the index that says what of them counts."""

from .blobs import Adopted
from .doctor import Ailment, examine, mend
from .layout import Layout
from .locks import Lease, Lock
from .rebuilding import rebuild
from .store import Store

__all__ = ["Adopted", "Ailment", "Layout", "Lease", "Lock", "Store", "examine", "mend", "rebuild"]
