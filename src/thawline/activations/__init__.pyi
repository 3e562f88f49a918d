from .inputs import ActivationInputs
from .plan import Plan, Profile, make_plan
from .splits import StoredSplits
from .store import ActivationKey, Activations, ActivationStore

__all__ = [
    "ActivationInputs",
    "ActivationKey",
    "ActivationStore",
    "Activations",
    "Plan",
    "Profile",
    "StoredSplits",
    "make_plan",
]
