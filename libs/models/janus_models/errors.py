"""What can be wrong with a model directory.

::

    JanusError                     (janus_runtime.errors; carries a google.rpc code, cause and next step)
    ├── ConfigError                INVALID_ARGUMENT: config.json says what Janus cannot serve, or nonsense
    ├── CheckpointError            FAILED_PRECONDITION: weights missing, cut short or of a wrong shape
    └── TokenizerError             FAILED_PRECONDITION: tokenizer files absent or unusable
        └── ChatTemplateError      INVALID_ARGUMENT: the template refused these messages
"""

from __future__ import annotations

from janus_runtime.errors import FailedPrecondition, InvalidArgument


class ConfigError(InvalidArgument):
    """``config.json`` is absent, is not JSON, or asks for something outside the supported range."""


class CheckpointError(FailedPrecondition):
    """The weights on disk are not what ``config.json`` and the index promise."""


class TokenizerError(FailedPrecondition):
    """The tokenizer files are absent or cannot be used."""


class ChatTemplateError(InvalidArgument):
    """The model's chat template refused the messages (or there is none)."""
