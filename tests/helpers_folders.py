"""Folders of tests that other users may enter."""


def let_all_in(folder):
    """Let every user into a folder: pytest keeps its folders, and those above them, to itself."""
    for path in (folder, *folder.parents):
        if path.stat().st_mode & 0o055 != 0o055:
            path.chmod(0o755)
