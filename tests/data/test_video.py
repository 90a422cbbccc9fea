"""Every frame of the synthetic videos carries its own number, so a wrong frame can't pass."""

import io
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from data._worker import Clip
from data.mp4 import write_mp4
from data.video import Decoder, VideoError

ASSETS = Path(__file__).resolve().parents[3] / "shared/assets"
VIDEOS = sorted((ASSETS / "videos").glob("*")) if ASSETS.exists() else []
BLOCK = 16  # side of one bit of the number painted into a frame


def paint(number, width=128, height=96):
    frame = np.full((height, width, 3), 100, np.uint8)
    frame[:, :, 2] = np.linspace(0, 255, width)
    for bit in range(8):
        row, column = divmod(bit, 4)
        value = 255 * (number >> bit & 1)
        frame[row * BLOCK : (row + 1) * BLOCK, column * BLOCK : (column + 1) * BLOCK] = value
    frame[64:80, number % (width - 16) : number % (width - 16) + 16, 0] = 255
    return frame


def number_of(frame):
    centre = BLOCK // 2
    bits = [frame[row * BLOCK + centre, column * BLOCK + centre, 1] > 128
            for row in (0, 1) for column in range(4)]  # fmt: skip
    return sum(1 << i for i, bit in enumerate(bits) if bit)


def write(
    path, count=40, codec="libx264", pixels="yuv420p", size=(128, 96), stamps=None, **options
):
    """Writes `count` numbered frames at 30 frames a second, or at `stamps` in milliseconds."""
    container_options = options.pop("container", {})
    with av.open(str(path), "w", options=container_options) as container:
        stream = container.add_stream(codec, rate=30, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = pixels
        stream.gop_size = 10
        if stamps is not None:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(paint(i, *size), format="rgb24")
            frame = frame.reformat(format=pixels)
            if stamps is not None:
                frame.pts, frame.time_base = stamps[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def decoder():
    with Decoder() as decoder:
        yield decoder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write(tmp_path_factory.mktemp("video") / "plain.mp4")


def worker_pid(decoder):
    return decoder._process.pid


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


# The facts


def test_info(decoder, plain):
    info = decoder.info(plain)
    assert info.path == str(plain)
    assert (info.fps, info.frame_count, info.width, info.height) == (30.0, 40, 128, 96)
    assert info.seconds == pytest.approx(40 / 30)
    assert info.backend == "decord"


KINDS = {
    "h264.mp4": ("decord", {}),
    "h264.mkv": ("decord", {}),
    "mpeg4.mp4": ("decord", {"codec": "mpeg4"}),
    "vp9.webm": ("decord", {"codec": "libvpx-vp9", "deadline": "realtime", "cpu-used": "8"}),
    "grey.mp4": ("decord", {"pixels": "gray"}),
    "444.mp4": ("decord", {"pixels": "yuv444p"}),
    "full_range.mp4": ("decord", {"pixels": "yuvj420p"}),
    "one.mp4": ("decord", {"count": 1}),
    # decord's frames are wrong, or it reads nothing: FrameTable.trusts_decord says why.
    "odd.mp4": ("pyav", {"codec": "mpeg4", "size": (127, 95)}),
    "10_bit.mp4": ("pyav", {"pixels": "yuv420p10le"}),
    "open_gop.mp4": ("pyav", {"x264-params": "open-gop=1:keyint=10:bframes=3"}),
    "refresh.mp4": ("pyav", {"x264-params": "intra-refresh=1:keyint=10"}),
    "transport.ts": ("pyav", {}),
    "program.mpg": ("pyav", {"codec": "mpeg2video"}),
    "h264.avi": ("pyav", {}),
    "av1.mkv": ("pyav", {"codec": "libsvtav1", "preset": "13"}),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_gives_the_frame_asked_for(decoder, tmp_path, name, capfd):
    backend, options = KINDS[name]
    if options.get("codec", "libx264") not in av.codecs_available:
        pytest.skip(f"this PyAV can't write {options['codec']}")
    path = write(tmp_path / name, **options)
    capfd.readouterr()  # what the encoder had to say
    info = decoder.info(path)
    count = options.get("count", 40)
    width, height = options.get("size", (128, 96))
    assert (info.frame_count, info.width, info.height) == (count, width, height)
    assert info.fps == pytest.approx(30.0, rel=1e-3)
    assert info.backend == backend
    order = np.random.default_rng(0).permutation(np.r_[np.arange(count), 0, count - 1])
    frames = decoder.frames(path, order)
    assert frames.shape == (len(order), height, width, 3)
    assert [number_of(frame) for frame in frames] == order.tolist()
    if options.get("pixels") != "gray":
        assert np.abs(frames[0].astype(int) - paint(order[0], width, height)).mean() < 12
    assert decoder.times(path) == pytest.approx(np.arange(count) / 30, abs=2e-3)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind[0] == "decord"])
def test_both_decoders_give_the_same_bytes(tmp_path, name):
    clip = Clip(str(write(tmp_path / name, **KINDS[name][1])))
    for number in np.random.default_rng(1).permutation(len(clip.table.times)).tolist():
        clip._group = -1  # as if it came from elsewhere: decord is to jump
        assert np.array_equal(clip.read(number), clip._pyav.read(number))
    assert clip.info()["backend"] == "decord"  # it never gave up
    clip.close()


@pytest.mark.parametrize("name", KINDS)
def test_frames_wanted_alone_are_those_of_a_whole_decode(tmp_path, name):
    """Frames that nothing refers to are left undecoded: those wanted must not notice."""
    options = {"bf": "3", **KINDS[name][1]} if "codec" not in KINDS[name][1] else KINDS[name][1]
    if options.get("codec", "libx264") not in av.codecs_available:
        pytest.skip(f"this PyAV can't write {options['codec']}")
    clip = Clip(str(write(tmp_path / name, **options)))
    count = len(clip.table.times)
    whole = [clip.read(number) for number in range(count)]
    rng = np.random.default_rng(2)
    for size in (1, 2, 5, 13, count):
        wanted = np.unique(rng.integers(0, count, size)).tolist()
        clip.want(wanted)
        for number in wanted:
            assert np.array_equal(clip.read(number), whole[number]), (wanted, number)
    clip.close()


def test_what_is_not_wanted_is_not_decoded(tmp_path):
    clip = Clip(str(write(tmp_path / "b.mp4", bf="3")))
    decoded, place = [], clip._pyav._place
    clip._pyav._place = lambda frame: decoded.append(frame.pts) or place(frame)
    clip.want([38, 39])
    assert [number_of(clip.read(number)) for number in (38, 39)] == [38, 39]
    assert len(decoded) < 9  # of the 10 from the keyframe on


def test_a_narrow_video(tmp_path):
    """decord gives frames of 48 pixels a row four channels."""
    frames = np.random.default_rng(0).integers(0, 255, (4, 32, 48, 3), dtype=np.uint8)
    write_mp4(tmp_path / "narrow.mp4", frames, 30)
    clip = Clip(str(tmp_path / "narrow.mp4"))
    clip.want([2])  # alone in its group of pictures: for decord to read
    assert clip.read(2).shape == (32, 48, 3)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_variable_frame_rate(decoder, tmp_path, suffix):
    stamps = np.cumsum([0] + [33, 100, 50] * 13)
    if suffix == "avi":  # which has no variable rate: the true times are those of the container
        stamps = np.round(np.arange(40) * 40).astype(int)
    path = write(tmp_path / f"vfr.{suffix}", codec="mpeg4", stamps=stamps.tolist())
    info = decoder.info(path)
    seconds = stamps / 1000
    assert decoder.times(path, [39, 0, 2, 2]) == pytest.approx(seconds[[39, 0, 2, 2]], abs=1e-3)
    assert info.fps == pytest.approx(39 / seconds[-1], rel=0.05)  # not the nominal 30
    assert info.seconds == pytest.approx(seconds[-1] + 1 / info.fps, abs=2e-3)
    assert decoder.indices_at(path, seconds[5:8]).tolist() == [5, 6, 7]
    between = seconds[5:8] + 0.02
    assert decoder.indices_at(path, [-1.0, *between, 99.0]).tolist() == [0, 5, 6, 7, 39]


def test_times_start_at_the_first_frame(decoder, tmp_path):
    path = write(tmp_path / "late.mp4", count=5, stamps=[8000, 8040, 8080, 8120, 8160])
    assert decoder.times(path) == pytest.approx([0.0, 0.04, 0.08, 0.12, 0.16], abs=1e-4)


def test_a_time_written_as_a_fraction_finds_its_frame(decoder, plain):
    assert decoder.indices_at(plain, np.arange(40) / 30).tolist() == list(range(40))


# Upright frames: 16.16 fixed-point rows (a, b) of the display matrix, for a turn clockwise.
MATRICES = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}


@pytest.mark.parametrize("backend", ["decord", "pyav"])
@pytest.mark.parametrize("turn", MATRICES)
def test_rotation_metadata(decoder, tmp_path, turn, backend):
    options = {} if backend == "decord" else {"x264-params": "open-gop=1:keyint=10:bframes=3"}
    path = write(tmp_path / "turned.mp4", **options)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44  # past version, dates, ids, duration, layer and volume
    a, b, c, d = (int(v << 16).to_bytes(4, "big", signed=True) for v in MATRICES[turn])
    data[at : at + 8], data[at + 12 : at + 20] = a + b, c + d
    path.write_bytes(data)
    info = decoder.info(path)
    assert info.backend == backend
    assert (info.width, info.height) == ((128, 96) if turn == 180 else (96, 128))
    frames = decoder.frames(path, [0, 17, 39])
    assert frames.shape == (3, info.height, info.width, 3)
    upright = [np.rot90(frame, turn // 90) for frame in frames]
    assert [number_of(frame) for frame in upright] == [0, 17, 39]


# The frames


def test_order_and_repeats(decoder, plain):
    order = [7, 3, 3, 39, 0, 7]
    frames = decoder.frames(plain, order)
    assert frames.dtype == np.uint8
    assert [number_of(frame) for frame in frames] == order
    assert decoder.frames(plain, []).shape == (0, 96, 128, 3)


def test_resizing_is_pil_bicubic(decoder, plain):
    native, small = decoder.frames(plain, [5]), decoder.frames(plain, [5], size=(42, 56))
    expected = Image.fromarray(native[0]).resize((56, 42), Image.Resampling.BICUBIC)
    assert np.array_equal(small[0], np.asarray(expected))
    with pytest.raises(ValueError, match="size"):
        decoder.frames(plain, [5], size=(0, 56))


@pytest.mark.parametrize("index", [40, -1, 10**9])
def test_no_such_frame(decoder, plain, index):
    for call in (decoder.frames, decoder.times):
        with pytest.raises(VideoError, match=f"no frame {index}: it has 40") as error:
            call(plain, [0, index])
        assert error.value.stage == "decode"
    assert len(decoder.frames(plain, [39])) == 1


def test_a_rewritten_file_is_read_anew(decoder, tmp_path):
    path = write(tmp_path / "clip.mp4", count=10)
    assert decoder.info(path).frame_count == 10
    write(path, count=12)
    assert decoder.info(path).frame_count == 12


def test_memory_stays_bounded(tmp_path):
    # 500 frames are 780 MB of pixels, and decord left alone would queue them all.
    path = tmp_path / "long.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30, options={"qscale": "31"})
        stream.width, stream.height, stream.pix_fmt = 960, 540, "yuv420p"
        frame = av.VideoFrame(960, 540, "yuv420p")
        for i in range(500):
            for plane in frame.planes:
                plane.update(bytes([i % 256]) * plane.buffer_size)
            frame.pts = None
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with Decoder() as decoder:
        assert decoder.frames(path, range(0, 500, 50), size=(28, 28)).shape[0] == 10
        time.sleep(0.5)
        assert decoder.frames(path, range(500), size=(28, 28)).shape[0] == 500
        status = Path(f"/proc/{worker_pid(decoder)}/status").read_text()
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) / 1024
    assert peak < 300


# What can't be read


def audio_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def no_frames(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        container.start_encoding()


def cut(path, container):
    whole = write(path, count=120, container=container)
    data = whole.read_bytes()
    path.write_bytes(data[: len(data) // 2])


BAD = {
    "missing.mp4": (lambda path: None, "no such file"),
    "directory.mp4": (lambda path: path.mkdir(), "is a directory"),
    "empty.mp4": (lambda path: path.touch(), "not a video file"),
    "text.mp4": (lambda path: path.write_text("not a video\n" * 50), "not a video file"),
    "notes.txt": (lambda path: path.write_text("not a video\n" * 50), "not a kind of file"),
    "list.m3u8": (
        lambda path: path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nother.mp4\n"),
        "not a kind of file",
    ),
    "cut.mp4": (lambda path: cut(path, {}), "cut short"),
    "cut_behind_index.mp4": (lambda path: cut(path, {"movflags": "faststart"}), "cut short after"),
    "cut.mkv": (lambda path: cut(path, {}), r"cut short: \d\.\d s of 4\.0 s"),
    "audio.m4a": (audio_only, "no video stream"),
    "no_frames.mp4": (no_frames, "no video stream|no frames"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_get_one_clear_line(decoder, plain, tmp_path, name, capfd):
    make, reason = BAD[name]
    path = tmp_path / name
    make(path)
    capfd.readouterr()
    with pytest.raises(VideoError, match=reason) as error:
        decoder.info(path)
    assert error.value.stage == "open"
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")
    with pytest.raises(VideoError, match=reason):
        decoder.frames(path, [0])
    assert decoder.info(plain).frame_count == 40


def test_errors_survive_pickling():
    error = pickle.loads(pickle.dumps(VideoError("a.mp4", "open", "no such file")))
    assert (str(error), error.stage) == ("a.mp4: no such file", "open")


# The process


def test_a_decoder_that_hangs_is_killed(plain, tmp_path):
    path = tmp_path / "hangs.mp4"
    os.mkfifo(path)  # opening it blocks for ever: nobody writes
    with Decoder(timeout=0.5) as decoder:
        decoder.info(plain)
        pid = worker_pid(decoder)
        begin = time.monotonic()
        with pytest.raises(VideoError, match=r"no answer from the decoder in 0\.5 s") as error:
            decoder.frames(path, [0])
        assert 0.5 <= time.monotonic() - begin < 5
        assert error.value.stage == "timeout"
        assert not alive(pid)
        decoder.timeout = 30.0
        assert decoder.info(plain).frame_count == 40
        assert worker_pid(decoder) != pid


def test_a_worker_that_dies_is_replaced(plain):
    with Decoder() as decoder:
        decoder.info(plain)
        os.kill(worker_pid(decoder), signal.SIGSEGV)
        with pytest.raises(VideoError, match=r"the decoder died: .*-11") as error:
            decoder.info(plain)
        assert error.value.stage == "decode"
        assert decoder.info(plain).frame_count == 40


def test_the_worker_is_recycled(tmp_path):
    paths = [write(tmp_path / f"{i}.mp4", count=2) for i in range(5)]
    with Decoder(recycle=2) as decoder:
        pids = []
        for path in paths:
            decoder.info(path)
            decoder.frames(path, [0])  # the same clip counts once
            pids.append(worker_pid(decoder))
        last = pids[-1]
    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4]
    assert not alive(last)


def test_the_worker_never_loads_jax(decoder, plain):
    import jaxlib.xla_client  # here it is loaded, so that a child of this process might be, too

    decoder.frames(plain, [0])
    maps = Path(f"/proc/{worker_pid(decoder)}/maps").read_text()
    assert "decord" in maps
    assert "jaxlib" not in maps
    assert "jaxlib" in Path("/proc/self/maps").read_text()
    assert jaxlib.xla_client is not None


def test_importing_data_is_light():
    code = "import sys, data.video, data.mp4; print({'jax', 'av', 'decord'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_no_orphans(tmp_path, plain, ending):
    path = tmp_path / "hangs.mp4"
    os.mkfifo(path)
    code = f"""
from data.video import Decoder
with Decoder() as decoder:
    decoder.info({str(plain)!r})
    print(decoder._process.pid, flush=True)
    try:
        decoder.info({str(path)!r})
    except KeyboardInterrupt:
        print("interrupted")
"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe) as parent:
        pid = int(parent.stdout.readline())
        time.sleep(0.3)
        assert alive(pid)
        parent.send_signal(ending)
        output, errors = parent.communicate(timeout=20)
    assert errors == b""
    assert output == (b"interrupted\n" if ending == signal.SIGINT else b"")
    assert wait_until(lambda: not alive(pid))


# Real videos


def listed():
    """The table of SOURCES.md: file name -> (frames, average rate, width, height, rotation)."""
    rows = {}
    for line in io.StringIO((ASSETS / "SOURCES.md").read_text()):
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 8 and re.fullmatch(r"\d+x\d+", cells[3]):
            width, height = map(int, cells[3].split("x"))
            rate = float(cells[6].split("/")[1])
            rows[cells[1]] = (int(cells[7]), rate, width, height, int(cells[5]))
    return rows


# v:0 is listed, but the best stream is another (480x270, 390 frames); one packet is damaged.
OTHERWISE = {
    "torchcodec_nasa_13013.mp4": (390, 29.97, 480, 270, 0),
    "decord_corrupted.mp4": (50, 10.0, 1280, 720, 0),
}


@pytest.mark.skipif(not VIDEOS, reason="the real videos are not here")
def test_real_videos_have_the_figures_of_ffprobe(decoder, capfd):
    rows = {**listed(), **OTHERWISE}
    for path in VIDEOS:
        frames, rate, width, height, rotation = rows[path.name]
        info = decoder.info(path)
        size = (height, width) if rotation % 180 else (width, height)
        assert (info.frame_count, info.width, info.height) == (frames, *size), path.name
        assert info.fps == pytest.approx(rate, rel=1e-3), path.name
        times = decoder.times(path)
        assert times[0] == 0 and (np.diff(times) > 0).all(), path.name
    assert len(VIDEOS) == 48
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.skipif(not VIDEOS, reason="the real videos are not here")
@pytest.mark.parametrize("path", VIDEOS, ids=lambda path: path.stem)
def test_real_frames_are_those_of_a_whole_decode(path):
    clip = Clip(str(path))
    count = len(clip.table.times)
    wanted = sorted({*np.random.default_rng(0).permutation(count)[:6].tolist(), 0, count - 1})
    truth, seen = {}, 0
    with av.open(str(path)) as container:
        for packet in container.demux(container.streams[clip.table.stream]):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                break  # from here on counting is no way to number frames
            for frame in frames:
                if seen in wanted:
                    truth[seen] = np.rot90(frame.to_ndarray(format="rgb24"), clip._pyav.turns)
                seen += 1
    for number in sorted(truth, reverse=True):
        assert np.array_equal(clip.read(number), truth[number]), number
    clip.want(sorted(truth))  # from here on others may be left undecoded
    for number in sorted(truth):
        assert np.array_equal(clip.read(number), truth[number]), number
    assert seen == count or path.stem == "decord_corrupted"
    clip.close()


@pytest.mark.skipif(not VIDEOS, reason="the real videos are not here")
def test_a_damaged_frame_costs_itself_alone(decoder):
    path = ASSETS / "videos/decord_corrupted.mp4"
    with pytest.raises(VideoError, match="frame 30 of 50 is damaged") as error:
        decoder.frames(path, [29, 30, 31])
    assert error.value.stage == "decode"
    assert decoder.frames(path, [29, 31, 49]).shape == (3, 720, 1280, 3)
