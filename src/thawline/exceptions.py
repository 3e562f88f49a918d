"""Every error that Thawline raises on purpose, with a sentence of *when*.

::

    ThawlineError                 anything below; the command line prints it without a traceback and exits 2
    ├── ConfigError               a recipe, an option or a ``--set`` is wrong; all mistakes at once, by key
    ├── DataError                 the data cannot be trained on
    │   └── BadImageError         one file cannot be decoded; collected into the report, never hidden
    ├── BackboneError             an unknown backbone, or one that cannot be cut or sized as asked
    │   └── WeightsError          pretrained weights are not available, or do not fit
    ├── ActivationError           activations cannot be stored; they are then computed instead, with a warning
    ├── TrainingError             a trial cannot continue (loss is not finite, a device is missing)
    ├── CheckpointError           a checkpoint is torn, foreign or from another configuration
    ├── StudyError                a study is in use, unknown, or was made with another configuration
    ├── TrackingError             the tracking server cannot be reached at the start
    ├── DatabaseError             a database of the home was made by a newer version, or cannot be made
    ├── PrefectServerError        Prefect's API server does not start, or does not answer
    ├── ServingError              the server cannot start: its port, token file or device, or no process loads the model
    └── RegistryError             a model, version or alias is missing, or a promotion is refused
        └── EngineError           the engine that is requested cannot compute a version as it was trained
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
    """An unknown backbone, or one that cannot be cut or sized as asked."""


class WeightsError(BackboneError):
    """Pretrained weights are not available, or do not fit the backbone."""


class ActivationError(ThawlineError):
    """Activations cannot be stored (no room, numbers too large); they are then computed instead, with a warning."""


class TrainingError(ThawlineError):
    """A trial cannot continue; the trial is recorded as failed with this text."""


class CheckpointError(ThawlineError):
    """A checkpoint is torn, foreign or from another configuration."""


class StudyError(ThawlineError):
    """A study is in use, unknown, or was made with another configuration."""


class TrackingError(ThawlineError):
    """The tracking server cannot be reached at the start of a search."""


class DatabaseError(ThawlineError):
    """A database of the home was made by a newer version of its library, or cannot be made."""


class PrefectServerError(ThawlineError):
    """Prefect's API server does not start, or does not answer."""


class RegistryError(ThawlineError):
    """A model, version or alias is missing, or a promotion is refused."""


class ExportError(RegistryError):
    """A network cannot be written in another format, or answers otherwise in it."""


class EngineError(RegistryError):
    """A version cannot be computed by the engine that is wanted."""


class ServingError(ThawlineError):
    """The server cannot start: its port, token file or device cannot be used."""
