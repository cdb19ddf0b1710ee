"""The store: blobs, manifests, and the index that says what of them counts."""

from .blobs import Adopted
from .layout import Layout
from .locks import Lease, Lock
from .store import Store

__all__ = ["Adopted", "Layout", "Lease", "Lock", "Store"]
