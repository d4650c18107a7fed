"""The errors a user can cause. Each message says what was wrong, where, and what to do."""

from __future__ import annotations


class LrdiffError(Exception):
    """Something the user can put right. The command line prints it without a traceback and exits with code 2."""


class ConfigError(LrdiffError):
    """A setting is unknown, out of range, or contradicts another one."""


class DataError(LrdiffError):
    """A file or folder the user gave cannot be used."""


class ModelError(LrdiffError):
    """A base model is absent, incomplete or of an unknown family."""


class ArtifactError(LrdiffError):
    """A saved adapter cannot be read, is damaged, or belongs to another base model."""


class TargetError(LrdiffError):
    """No layer, or an unusable layer, was chosen for an adapter."""


class ShapeError(LrdiffError):
    """A tensor or layer has a size the operation cannot work with."""


class BackendError(LrdiffError):
    """A requested device, kernel or optional package is absent."""


class RunError(LrdiffError):
    """A run directory cannot be created, read, resumed or finished."""


class NonFiniteError(RunError):
    """A loss or gradient became NaN or infinite."""


class Cancelled(LrdiffError):
    """Raised inside a progress callback to end the work early; nothing half-written is left."""
