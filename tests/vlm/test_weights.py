"""Checkpoints out and in: bit for bit, both spellings, every dtype; damaged ones named, not read.

Names are compared with those of `transformers`' own model on torch's meta device.
"""

import dataclasses
import json
import pickle
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import small
from safetensors.numpy import load_file, save_file

from vlm.config import NAMED, VLMConfig
from vlm.weights import (
    WeightsError,
    abstract_model,
    count,
    hub_names,
    load_weights,
    parameters,
    random_weights,
    save_weights,
)

CONFIG = small.CONFIG
TIED = dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, tied=True))
QWEN = Path(__file__).resolve().parents[2].parent / "shared/assets/qwen"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def model():
    return small.model()


@pytest.fixture
def saved(model, tmp_path):
    """A directory with the float32 checkpoint, and its tensors by name."""
    save_weights(model, tmp_path)
    return tmp_path, load_file(tmp_path / "model.safetensors")


def assert_same(ours, theirs):
    ours, theirs = parameters(ours), parameters(theirs)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        a, b = np.asarray(value), np.asarray(theirs[name])
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8), err_msg=name)


def refused(directory, config=CONFIG):
    """The error of loading: one line that names the directory."""
    with pytest.raises(WeightsError) as error:
        load_weights(directory, config)
    message = str(error.value)
    assert "\n" not in message and str(directory) in message
    return message


# Out and in


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["untied", "tied"])
def test_what_is_saved_is_read_back_bit_for_bit(dtype, config, tmp_path):
    model = small.model(config, dtype=jnp.dtype(dtype))
    save_weights(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    stored = load_file(tmp_path / "model.safetensors")
    assert {name: value.shape for name, value in stored.items()} == hub_names(config)
    assert {value.dtype for value in stored.values()} == {np.dtype(dtype)}
    assert ("lm_head.weight" in stored) != config.text.tied
    assert_same(load_weights(tmp_path, config, dtype=jnp.dtype(dtype)), model)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shards_are_read_back_bit_for_bit(dtype, tmp_path):
    model = small.model(dtype=jnp.dtype(dtype))
    limit = 40_000
    save_weights(model, tmp_path, shard_bytes=limit)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / INDEX).read_text())
    assert set(index["weight_map"]) == set(hub_names(CONFIG))
    for file in files:
        assert (tmp_path / file).stat().st_mode == (tmp_path / INDEX).stat().st_mode
        tensors = load_file(tmp_path / file)
        assert {name for name, where in index["weight_map"].items() if where == file} == set(
            tensors
        )
        size = sum(value.nbytes for value in tensors.values())
        assert size <= limit or len(tensors) == 1
    bytes_each = np.dtype(dtype).itemsize
    assert index["metadata"]["total_size"] == count(model) * bytes_each
    assert_same(load_weights(tmp_path, CONFIG, dtype=jnp.dtype(dtype)), model)


@pytest.mark.parametrize("limits", [(10**9, 40_000), (40_000, 10**9), (40_000, 90_000)])
def test_a_second_save_leaves_nothing_of_the_first(limits, tmp_path):
    """A stale index or stale shards would be read in place of the new tensors."""
    (tmp_path / "notes.safetensors.txt").write_text("stays")
    first, second = small.model(seed=1), small.model(seed=2)
    save_weights(first, tmp_path, shard_bytes=limits[0])
    save_weights(second, tmp_path, shard_bytes=limits[1])
    assert_same(load_weights(tmp_path, CONFIG, dtype=jnp.float32), second)
    assert (tmp_path / INDEX).exists() == (limits[1] < 10**9)
    stored = [name for path in tmp_path.glob("*.safetensors") for name in load_file(path)]
    assert sorted(stored) == sorted(hub_names(CONFIG))
    assert (tmp_path / "notes.safetensors.txt").exists()


def test_a_full_disk_is_told(model, tmp_path, full_disk):
    with full_disk(10_000), pytest.raises(OSError, match=r"model\.safetensors: .* too large"):
        save_weights(model, tmp_path)


def test_a_model_can_be_saved_over_the_files_it_came_from(saved, model):
    directory, _ = saved
    save_weights(load_weights(directory, CONFIG, dtype=jnp.float32), directory)
    assert_same(load_weights(directory, CONFIG, dtype=jnp.float32), model)


def test_layouts_on_disk_are_those_of_torch(saved, model):
    """[out, in] kernels, a 3-D convolution [out, C, t, y, x], one tensor a layer."""
    _, stored = saved
    ours = parameters(model)
    np.testing.assert_array_equal(
        stored["model.layers.1.self_attn.k_proj.weight"],
        np.asarray(ours["decoder.layers.attention.k.kernel"])[1].T,
    )
    np.testing.assert_array_equal(
        stored["visual.blocks.1.norm2.weight"], ours["vision.blocks.norm2.scale"][1]
    )
    np.testing.assert_array_equal(stored["model.embed_tokens.weight"], ours["embed.embedding"])
    patch = stored["visual.patch_embed.proj.weight"]
    assert patch.shape == (32, 1, 2, 2, 2)
    np.testing.assert_array_equal(patch.reshape(32, -1).T, ours["vision.patch_embed.kernel"])


@pytest.mark.parametrize(
    ("stored_as", "dtype"),
    [
        (np.float16, "float32"),
        (ml_dtypes.bfloat16, "float32"),
        (ml_dtypes.bfloat16, "float16"),
        (np.float32, "bfloat16"),
        (np.float64, "bfloat16"),
    ],
)
def test_any_floating_file_is_cast(stored_as, dtype, saved):
    directory, tensors = saved
    cast = {name: value.astype(stored_as) for name, value in tensors.items()}
    save_file(cast, directory / "model.safetensors")
    found = parameters(load_weights(directory, CONFIG, dtype=jnp.dtype(dtype)))
    kernel = found["vision.blocks.mlp.down.kernel"]
    assert {value.dtype for value in found.values()} == {np.dtype(dtype)}
    expected = cast["visual.blocks.1.mlp.down_proj.weight"].astype(np.dtype(dtype)).T
    np.testing.assert_array_equal(np.asarray(kernel[1]), expected)


def newer(name):
    """The spelling of newer files: model.visual, model.language_model."""
    if name.startswith(("model.language_model.", "model.visual.")):
        return name
    if name.startswith("visual."):
        return "model." + name
    return name.replace("model.", "model.language_model.", 1) if name[:6] == "model." else name


@pytest.mark.parametrize("sharded", [False, True])
def test_both_spellings_are_read(saved, model, sharded):
    directory, tensors = saved
    renamed = {newer(name): value for name, value in tensors.items()}
    assert "model.language_model.layers.0.mlp.up_proj.weight" in renamed
    assert "model.visual.merger.ln_q.weight" in renamed and "lm_head.weight" in renamed
    if sharded:
        (directory / "model.safetensors").unlink()
        halves = [dict(list(renamed.items())[i::2]) for i in range(2)]
        for i, half in enumerate(halves):
            save_file(half, directory / f"part{i}.safetensors")
        where = {name: f"part{i}.safetensors" for i, half in enumerate(halves) for name in half}
        (directory / INDEX).write_text(json.dumps({"weight_map": where}))
    else:
        save_file(renamed, directory / "model.safetensors")
    assert_same(load_weights(directory, CONFIG, dtype=jnp.float32), model)


def test_a_tied_head_that_is_stored_as_well_is_passed_over(saved):
    directory, tensors = saved
    assert "lm_head.weight" in tensors
    tied = load_weights(directory, TIED, dtype=jnp.float32)
    assert tied.head is None
    np.testing.assert_array_equal(
        parameters(tied)["embed.embedding"], tensors["model.embed_tokens.weight"]
    )


# Refused


def test_all_that_is_missing_unused_or_misshaped_is_listed_at_once(saved):
    directory, tensors = saved
    del tensors["model.layers.1.mlp.up_proj.weight"], tensors["visual.merger.mlp.2.bias"]
    tensors["visual.blocks.2.norm1.weight"] = np.ones(32, np.float32)
    tensors["model.layers.0.self_attn.q_norm.weight"] = np.ones(8, np.float32)
    tensors["model.norm.weight"] = np.ones(31, np.float32)
    # The transposed kernel has as many values.
    tensors["model.layers.0.mlp.gate_proj.weight"] = np.ones((32, 48), np.float32)
    tensors["model.layers.0.self_attn.k_proj.bias"] = np.ones(16, np.int32)
    save_file(tensors, directory / "model.safetensors")
    message = refused(directory)
    for part in (
        "missing: model.layers.1.mlp.up_proj.weight (48, 32)",
        "missing: visual.merger.mlp.2.bias (32,)",
        "unused: visual.blocks.2.norm1.weight (32,)",
        "unused: model.layers.0.self_attn.q_norm.weight (8,)",
        "shape of model.norm.weight: (31,) in the file, (32,) by config.json",
        "shape of model.layers.0.mlp.gate_proj.weight: (32, 48) in the file, (48, 32)",
        "dtype of model.layers.0.self_attn.k_proj.bias: I32",
    ):
        assert part in message
    assert message.count("missing:") == message.count("unused:") == message.count("shape of") == 2


def test_an_untied_model_needs_its_head(saved):
    directory, tensors = saved
    del tensors["lm_head.weight"]
    save_file(tensors, directory / "model.safetensors")
    assert "missing: lm_head.weight (40, 32)" in refused(directory)
    load_weights(directory, TIED)


def test_one_tensor_stored_twice_is_refused(saved):
    directory, tensors = saved
    tensors["model.language_model.norm.weight"] = tensors["model.norm.weight"] + 1
    save_file(tensors, directory / "model.safetensors")
    assert "stored twice" in refused(directory)


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("a pickle was opened",)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_a_pickle_is_refused_unopened(name, tmp_path):
    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    message = refused(tmp_path)
    assert name in message and "pickle" in message and "safetensors" in message


def test_a_directory_without_weights(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert "no *.safetensors file" in refused(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 100, -1], ids=["empty", "header", "names", "last_byte"])
def test_a_cut_off_file(saved, keep):
    directory, _ = saved
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert "model.safetensors: not a readable safetensors file" in refused(directory)


def test_something_else_under_the_name_of_a_weights_file(saved):
    directory, _ = saved
    (directory / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "not a readable safetensors file" in refused(directory)


def test_shards_that_the_index_names_but_are_not_there(model, tmp_path):
    save_weights(model, tmp_path, shard_bytes=40_000)
    first, second, *_ = sorted(tmp_path.glob("*.safetensors"))
    first.unlink()
    second.unlink()
    message = refused(tmp_path)
    assert first.name in message and second.name in message


@pytest.mark.parametrize("outside", ["../{}/model.safetensors", "{root}/model.safetensors", ".."])
def test_an_index_is_not_followed_out_of_its_directory(saved, outside, tmp_path_factory):
    elsewhere, tensors = saved
    directory = tmp_path_factory.mktemp("here")
    name = outside.format(elsewhere.name, root=elsewhere)
    where = dict.fromkeys(tensors, name)
    (directory / INDEX).write_text(json.dumps({"weight_map": where}))
    message = refused(directory)
    assert "outside its directory" in message or "missing" in message
    # A file of that name in the directory is not taken for it either.
    save_file(tensors, directory / "model.safetensors")
    refused(directory)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": null}', '{"weight_map": {"a": 1}}', "\x00"]
)
def test_an_index_that_is_none(saved, text):
    directory, _ = saved
    (directory / INDEX).write_text(text)
    assert "not an index" in refused(directory)


# Names and sizes


@pytest.mark.parametrize("name", NAMED)
def test_names_and_shapes_are_those_of_transformers(name):
    torch = pytest.importorskip("torch", reason="parity needs the `parity` extra")
    transformers = pytest.importorskip("transformers")
    config = NAMED[name]
    prefix = "Qwen3VL" if config.family == "qwen3_vl" else "Qwen2_5_VL"
    hf_config = getattr(transformers, f"{prefix}Config")(**config.to_hf())
    with torch.device("meta"):
        theirs = getattr(transformers, f"{prefix}ForConditionalGeneration")(hf_config)
    shapes = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    if config.text.tied:
        assert shapes.pop("lm_head.weight") == shapes["model.language_model.embed_tokens.weight"]
    assert {newer(key): shape for key, shape in hub_names(config).items()} == shapes


def test_names_and_size_are_those_of_the_published_index():
    path = QWEN / "Qwen2.5-VL-7B-Instruct" / INDEX
    if not path.exists():
        pytest.skip("needs the index of Qwen2.5-VL-7B in shared/assets")
    index, config = json.loads(path.read_text()), VLMConfig()
    assert set(index["weight_map"]) == set(hub_names(config))
    assert index["metadata"]["total_size"] == 2 * count(abstract_model(config))  # bfloat16


def test_random_weights_follow_the_seed_and_the_dtype():
    one = small.CONFIG
    first, again = random_weights(one, seed=3), random_weights(one, seed=3)
    other = random_weights(one, seed=4, dtype=jnp.float32)
    assert_same(first, again)
    kernels = parameters(other)
    assert first.dtype == jnp.bfloat16 and other.dtype == jnp.float32
    assert kernels["head.kernel"].std() == pytest.approx(0.02, rel=0.1)
    layers = np.asarray(kernels["decoder.layers.mlp.up.kernel"])
    assert np.abs(layers[0] - layers[1]).max() > 0.01  # layers are drawn one by one
    assert (np.asarray(kernels["decoder.norm.scale"]) == 1).all()
    drawn = parameters(first)["head.kernel"].astype(jnp.float32)
    assert not np.allclose(drawn, kernels["head.kernel"], atol=1e-3)
