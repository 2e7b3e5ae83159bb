"""Folders that are written into."""

from pathlib import Path
from tempfile import TemporaryFile

from gradmem_bench.errors import UserError


def check_writable(folder: Path, option: str = "--output") -> None:
    """Finds out whether files can be put into `folder` before the work is done that makes them; leaves nothing there.

    Args:
        folder: where it is not there yet, the nearest one above it that is there is tried.
        option: what names it on the command line.
    Raises:
        UserError: they cannot.
    """
    try:
        nearest = next(one for one in (folder, *folder.parents) if one.exists() or one.is_symlink())
        with TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be written to: {error.strerror}; name another {option}.") from None
