"""The frozen prefix, computed once: what to store, the store, and training from it."""

from thawline.activations.fill import fill
from thawline.activations.inputs import ActivationInputs
from thawline.activations.plan import Plan, Profile, make_plan
from thawline.activations.profile import profile
from thawline.activations.splits import StoredSplits
from thawline.activations.store import ActivationKey, Activations, ActivationStore

__all__ = [
    "ActivationInputs",
    "ActivationKey",
    "ActivationStore",
    "Activations",
    "Plan",
    "Profile",
    "StoredSplits",
    "fill",
    "make_plan",
    "profile",
]
