import pytest


@pytest.fixture
def frames(tmp_path):
    """A folder of frames whose names do not sort as text, and of one file that is not a frame."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in (10, 9, 1):
        (folder / f"f{number}.PNG").write_bytes(bytes([number]))
    (folder / "notes.txt").write_text("no frame")
    return folder
