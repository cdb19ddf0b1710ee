"""The store: blobs, manifests, and the index that says what of them counts."""

from .blobs import Adopted
from .layout import Layout
from .locks import Lease, Lock
from .retention import NO_POLICY, Decision, Policy, parse_duration, parse_policy
from .store import Store
from .uses import Uses

__all__ = [
    "NO_POLICY",
    "Adopted",
    "Decision",
    "Layout",
    "Lease",
    "Lock",
    "Policy",
    "Store",
    "Uses",
    "parse_duration",
    "parse_policy",
]
