"""Every error that Thawline raises on purpose, and *when*.

::

    ThawlineError                 any of those below; the command line prints it without traceback and exits with 2
    ├── ConfigError               a recipe, an option or a ``--set`` is wrong; all mistakes at once, by key
    ├── DataError                 the data cannot be trained on
    │   └── BadImageError         one file cannot be decoded; collected into the report, never hidden
    ├── BackboneError             an unknown backbone, or one that cannot be cut or sized as requested
    │   └── WeightsError          pretrained weights are not available, or do not fit
    ├── ActivationError           activations cannot be stored; they are then computed instead, with a warning
    ├── TrainingError             a trial cannot continue (loss is not finite, a device is missing)
    ├── CheckpointError           a checkpoint is corrupt, foreign or from another configuration
    ├── StudyError                a study is in use, unknown, or was made with another configuration
    ├── TrackingError             the tracking server cannot be reached at the start
    ├── DatabaseError             a database of the home was created by a newer version, or cannot be created
    ├── PrefectServerError        Prefect's API server does not start, or does not respond
    ├── ServingError              the server cannot start: its port, token file or device, or no process loads the model
    └── RegistryError             a model, version or alias is missing, or a promotion is refused
        └── EngineError           the requested engine cannot compute a version as it was trained
"""


class ThawlineError(Exception):
    """Any error that names the rule, the value and the next step."""


class ConfigError(ThawlineError):
    """A recipe, an option or a ``--set`` is wrong."""


class DataError(ThawlineError):
    """The data cannot be trained on."""


class BadImageError(DataError):
    """One file cannot be decoded; ``str(error)`` is the reason without the file's name."""


class BackboneError(ThawlineError):
    """An unknown backbone, or one that cannot be cut or sized as requested."""


class WeightsError(BackboneError):
    """Pretrained weights are not available, or do not fit the backbone."""


class ActivationError(ThawlineError):
    """Activations cannot be stored (no room, numbers too large); they are then computed instead, with a warning."""


class TrainingError(ThawlineError):
    """A trial cannot continue; the trial is recorded as failed with this text."""


class CheckpointError(ThawlineError):
    """A checkpoint is corrupt, foreign or from another configuration."""


class StudyError(ThawlineError):
    """A study is in use, unknown, or was made with another configuration."""


class TrackingError(ThawlineError):
    """The tracking server cannot be reached at the start of a search."""


class DatabaseError(ThawlineError):
    """A database of the home was created by a newer version of its library, or cannot be created."""


class PrefectServerError(ThawlineError):
    """Prefect's API server does not start, or does not respond."""


class RegistryError(ThawlineError):
    """A model, version or alias is missing, or a promotion is refused."""


class ExportError(RegistryError):
    """A network cannot be written in another format, or gives different results in it."""


class EngineError(RegistryError):
    """A version cannot be computed by the requested engine."""


class ServingError(ThawlineError):
    """The server cannot start: its port, token file or device cannot be used."""
