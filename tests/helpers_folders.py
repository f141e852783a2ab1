"""Folders of tests that other users may enter."""

import tempfile
from pathlib import Path


def let_all_in(folder):
    """Let every user into a folder below that of temporary files: pytest keeps its folders to itself."""
    top = Path(tempfile.gettempdir())
    for path in (folder, *folder.parents):
        if path.is_relative_to(top) and path != top:
            path.chmod(0o755)
