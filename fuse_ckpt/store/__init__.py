"""The store: blobs, manifests, and the index that says what of them counts."""

from .accounts import Plan, Space
from .blobs import Adopted
from .checks import Findings, is_marked_damaged
from .collection import Tidied
from .doctor import Ailment, examine, mend
from .ending import WorkFile
from .layout import Layout
from .listings import SORTABLE, Tally
from .locks import Lease, Lock
from .rebuilding import rebuild
from .retention import NO_POLICY, Decision, Policy, parse_duration, parse_policy
from .store import Store
from .uses import Uses
from .verification import Damage

__all__ = [
    "NO_POLICY",
    "SORTABLE",
    "Adopted",
    "Ailment",
    "Damage",
    "Decision",
    "Findings",
    "Layout",
    "Lease",
    "Lock",
    "Plan",
    "Policy",
    "Space",
    "Store",
    "Tally",
    "Tidied",
    "Uses",
    "WorkFile",
    "examine",
    "is_marked_damaged",
    "mend",
    "parse_duration",
    "parse_policy",
    "rebuild",
]
