"""Frames of directories and files, in both directions; one line for what cannot be read."""

import numpy as np
import pytest
from PIL import Image

from sam_jax.video.frames import VideoError, open_frames


def save(folder, sizes):
    folder.mkdir(exist_ok=True)
    for index, (h, w) in enumerate(sizes):
        Image.fromarray(np.full((h, w, 3), 10 * index, np.uint8)).save(folder / f"{index:03d}.png")
    return folder


def test_a_directory(tmp_path):
    frames = open_frames(save(tmp_path / "a", [(4, 6)] * 3))
    assert (frames.names, frames.size) == (["000", "001", "002"], (4, 6))
    assert [int(frames.read(i).max()) for i in (2, 0, 1)] == [20, 0, 10]


def test_mistakes(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoError, match="empty holds no images"):
        open_frames(tmp_path / "empty")
    with pytest.raises(VideoError, match="does not exist"):
        open_frames(tmp_path / "nothing.mp4")
    odd = save(tmp_path / "odd", [(4, 6), (4, 8)])
    with pytest.raises(VideoError, match=r"001.png is 8x4 pixels, and the first frame 6x4"):
        open_frames(odd).read(1)
    with pytest.raises(VideoError, match="is a single image"):
        open_frames(odd / "000.png")
    Image.new("RGB", (6, 4)).save(odd / "000.jpg")
    with pytest.raises(VideoError, match="two frames named '000'"):
        open_frames(odd)


@pytest.mark.oracle
def test_a_file_in_both_directions(tmp_path):
    """Key frames are 12 apart, and frames refer to later ones; each is told by its grey."""
    import av

    path, count = tmp_path / "clip.mp4", 50
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "12", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(count):
            grey = np.full((48, 64, 3), 20 + 4 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    frames = open_frames(path)
    assert (len(frames.names), frames.size, frames.rate) == (count, (48, 64), 25)
    for order in (range(count), range(count - 1, -1, -1), (40, 3, 41, 2)):
        found = np.array([frames.read(i).mean() for i in order])
        assert np.abs(found - (20 + 4 * np.array(order))).max() < 2
    (tmp_path / "not.mp4").write_bytes(b"something else")
    with pytest.raises(VideoError, match="is not a video that PyAV can read"):
        open_frames(tmp_path / "not.mp4")
