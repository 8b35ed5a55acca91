"""Packages that not everybody has: one sentence where they are missing, or broken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needed(what: str, package: str, install: str) -> Iterator[None]:
    """Import a package within, or say what it is needed for and how to install it.

    A package that is there may fail in many ways: with an OSError where a library of the system is missing, with a
    RuntimeError or an AttributeError where it does not go with the version of another.

    Args:
        what: What needs it.
        package: Its name, or names.
        install: What to give to ``pip install``.

    Raises:
        ModuleNotFoundError: If it cannot be imported.

    Example:
        >>> with needed("A picture", "no_such_package", "no_such_package"):
        ...     import no_such_package
        Traceback (most recent call last):
            ...
        ModuleNotFoundError: A picture needs no_such_package: pip install "no_such_package"
    """
    try:
        yield
    except Exception as error:
        reason = ""
        missing = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else None
        if missing not in package.split(" and "):
            cause = " ".join(str(error).split()) or type(error).__name__
            reason = f", as what is installed cannot be imported: {cause[:300]}"
        raise ModuleNotFoundError(f'{what} needs {package}: pip install "{install}"{reason}') from error
