"""The store: blobs, manifests, and the index that says what of them counts."""

from .blobs import Adopted
from .checks import Findings
from .layout import Layout
from .locks import Lease, Lock
from .store import Store
from .verification import Damage

__all__ = ["Adopted", "Damage", "Findings", "Layout", "Lease", "Lock", "Store"]
