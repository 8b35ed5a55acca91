"""Lightning callbacks; one class a file."""

from snnreg_plugins.callbacks.activity_regularization import ActivityRegularization

__all__ = ["ActivityRegularization"]
