"""`vlm.load` and `vlm.save`: every kind of source, and one clear line for what is none.

The suite runs with HF_HUB_OFFLINE=1, so a hub id fails at once unless its answer is scripted here.
"""

import dataclasses
import json
import time

import jax.numpy as jnp
import numpy as np
import pytest
import small

import vlm
from vlm.config import NAMED, TINY, ConfigError, VLMConfig
from vlm.loading import BUNDLED, TOKENIZER, SourceError, with_tokens_of
from vlm.model import encode, logits, prepare, run
from vlm.positions import HF_COMPAT
from vlm.processor import Processor, ProcessorError
from vlm.weights import WeightsError, abstract_model, parameters

# TINY's tokenizer with a model of a few thousand parameters.
CONFIG = dataclasses.replace(
    with_tokens_of(small.CONFIG, TINY),
    text=dataclasses.replace(small.CONFIG.text, vocab=1024, tied=True),
    vision=dataclasses.replace(small.CONFIG.vision, channels=3, patch=14, window=56),
)


@pytest.fixture(scope="module")
def little():
    """A VLM to save: small, random, with the bundled tokenizer."""
    processor = Processor.from_pretrained(TOKENIZER, CONFIG)
    return vlm.VLM(small.model(CONFIG, dtype=jnp.bfloat16), CONFIG, processor, "little", False)


@pytest.fixture
def directory(little, tmp_path):
    vlm.save(little, tmp_path / "model")
    return tmp_path / "model"


def edit(directory, **changes):
    path = directory / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        scope, _, inner = key.rpartition("__")
        (config[scope] if scope else config)[inner] = value
    path.write_text(json.dumps(config))


def refused(source, error=SourceError, **options):
    """The one line that an impossible source is answered with."""
    with pytest.raises(error) as caught:
        vlm.load(source, **options)
    message = str(caught.value)
    assert "\n" not in message and message
    return message


# Sources that serve


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16"])
@pytest.mark.parametrize("seed", [None, 3])
def test_tiny_is_trained_and_small_or_random_by_a_seed(dtype, seed):
    one, again = (vlm.load("tiny", dtype=dtype, seed=seed) for _ in range(2))
    assert one.config == TINY and one.name == "tiny" and one.trained == (seed is None)
    values = parameters(one.model)
    assert {value.dtype for value in values.values()} == {np.dtype(dtype)}
    assert 1.5e6 < sum(value.size for value in values.values()) < 3e6
    for name, value in parameters(again.model).items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(values[name]), err_msg=name)


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_model_is_a_directory_of_at_most_8_mb(name):
    assert sum(path.stat().st_size for path in (TOKENIZER / name).iterdir()) <= 8e6
    there, bundled = vlm.load(TOKENIZER / name), vlm.load(name)
    assert there.config == bundled.config and there.trained and bundled.trained


def test_tiny_answers_a_prompt_with_a_video():
    tiny = vlm.load("tiny", dtype="float32")
    frames = np.random.default_rng(0).integers(0, 256, (4, 56, 84, 3), np.uint8)
    video = tiny.processor.video(frames, np.arange(4.0))
    text = "<|vision_start|><|video_pad|><|vision_end|>What happens next?"
    inputs = tiny.processor([text], [[video]])
    frames, tokens = prepare(inputs, tiny.config)

    @small.jit
    def forward(frames, tokens):
        return logits(tiny.model, run(tiny.model, tokens, encode(tiny.model, frames))[0])[:, 0]

    found = forward(frames, tokens)
    assert found.shape == (*inputs.input_ids.shape, TINY.text.vocab)
    assert found.dtype == jnp.float32 and np.isfinite(np.asarray(found)).all()


@pytest.mark.parametrize("name", NAMED)
def test_named_sizes_take_the_bundled_tokenizer(name, monkeypatch):
    monkeypatch.setattr(
        "vlm.loading.random_weights", lambda config, dtype, **_: abstract_model(config, dtype=dtype)
    )
    loaded = vlm.load(name)
    assert not loaded.trained and loaded.name == name
    assert with_tokens_of(loaded.config, NAMED[name]) == NAMED[name]
    assert loaded.config.video_token == TINY.video_token
    assert loaded.model.embed.embedding.shape == (NAMED[name].text.vocab, NAMED[name].text.hidden)
    assert loaded.processor.tokenize("<|vision_start|>") == [TINY.vision_start_token]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_is_saved_is_loaded(little, directory, dtype):
    loaded = vlm.load(directory, dtype=dtype)
    assert loaded.config == CONFIG and loaded.name == str(directory)
    assert not loaded.trained  # what was random is still known to be
    assert str(loaded.model.dtype) == dtype
    for name, value in parameters(little.model).items():
        found = np.asarray(parameters(loaded.model)[name])
        np.testing.assert_array_equal(found, np.asarray(value).astype(dtype), err_msg=name)
    said = json.loads((directory / "config.json").read_text())
    assert said["dtype"] == "bfloat16"
    assert VLMConfig.from_hf(said) == CONFIG

    ours, theirs = little.processor, loaded.processor
    assert theirs.settings == ours.settings
    assert (theirs.pad_token, theirs.stop_tokens) == (ours.pad_token, ours.stop_tokens)
    talk = [{"role": "user", "content": "What happens next?"}]
    assert theirs.render(talk) == ours.render(talk)
    assert theirs.tokenize(theirs.render(talk)) == ours.tokenize(ours.render(talk))


def test_saving_and_loading_again_changes_no_file(directory, tmp_path):
    vlm.save(vlm.load(str(directory)), tmp_path / "again")
    files = sorted(path.name for path in directory.iterdir())
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == files
    for name in files:
        assert (tmp_path / "again" / name).read_bytes() == (directory / name).read_bytes(), name


def test_the_rule_set_is_passed_on(directory):
    for source in ("tiny", directory):
        loaded = vlm.load(source, hf_compat="4.57")
        assert loaded.processor.settings.hf_compat == "4.57" != HF_COMPAT[0]
    assert "hf_compat is '3'" in refused("tiny", ValueError, hf_compat="3")


def test_a_hub_id_is_fetched_as_data_only(directory, monkeypatch):
    calls = []

    def fetch(name, allow_patterns):
        calls.append((name, allow_patterns))
        return str(directory)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    loaded = vlm.load("Qwen/Qwen2.5-VL-tiny", dtype="float32")
    assert loaded.name == "Qwen/Qwen2.5-VL-tiny" and loaded.config == CONFIG
    [(name, patterns)] = calls
    assert name == "Qwen/Qwen2.5-VL-tiny"
    assert not any(
        pattern in ("*", "*.*") or pattern.endswith((".bin", ".py", ".pt", ".pth", ".pkl"))
        for pattern in patterns
    )


def test_a_directory_is_preferred_to_a_hub_id_of_its_name(directory, monkeypatch):
    monkeypatch.chdir(directory.parent.parent)
    assert vlm.load(f"{directory.parent.name}/model").config == CONFIG


# Sources that do not


@pytest.mark.parametrize("dtype", ["int8", "bf16", "float64", ""])
def test_dtypes_it_does_not_have(dtype):
    message = refused("tiny", dtype=dtype)
    assert repr(dtype) in message and "'bfloat16'" in message


def test_a_hub_id_without_the_network_is_answered_at_once():
    start = time.monotonic()
    message = refused("nobody/not-a-model")
    assert time.monotonic() - start < 5
    assert message.startswith("nobody/not-a-model: not a directory, and not on the hub: ")


@pytest.mark.parametrize("name", ["a/--b", "x/..", "a/b.git", "a/" + "b" * 120])
def test_ids_that_the_hub_does_not_allow(name):
    assert name in refused(name)


def test_whatever_the_hub_client_raises_is_one_line(monkeypatch):
    def fail(*_, **__):
        raise ConnectionResetError

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    assert refused("some/model").endswith("not on the hub: ConnectionResetError")


@pytest.mark.parametrize("source", ["no such model", "/no/such/dir", "tiny.v2", "a/b/c"])
def test_names_of_nothing_are_answered_with_the_choices(source):
    message = refused(source)
    assert message.startswith(f"{source}: no such model")
    assert all(choice in message for choice in ("directory", "hub id", "tiny", *NAMED))


def test_a_file_is_no_model(directory):
    assert "no such model" in refused(directory / "config.json")


def test_a_directory_without_a_config(tmp_path):
    message = refused(tmp_path)
    assert str(tmp_path) in message and "no config.json" in message


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", '"qwen2_5_vl"', b"\xff\xfe{}"])
def test_a_config_that_is_no_json_object(directory, text):
    path = directory / "config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    message = refused(directory)
    assert str(path) in message and "not" in message


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "qwen2_vl"}, "model_type is 'qwen2_vl'; supported: 'qwen2_5_vl'"),
        ({"text_config__num_hidden_layers": None}, "config.json lacks 'num_hidden_layers'"),
        ({"vision_config": {}}, "config.json lacks"),
        ({"text_config__num_key_value_heads": 3}, "must divide"),
        ({"text_config__vocab_size": "many"}, "vocab_size is 'many'"),
    ],
)
def test_a_config_that_cannot_be_served(directory, changes, says):
    edit(directory, **changes)
    assert says in refused(directory, ConfigError)


def test_a_config_that_does_not_fit_the_weights(directory):
    edit(directory, text_config__num_hidden_layers=3)
    message = refused(directory, WeightsError)
    assert "missing: model.layers.2.input_layernorm.weight (32,)" in message
    edit(directory, text_config__num_hidden_layers=1)
    assert "unused: model.layers.1.input_layernorm.weight (32,)" in refused(directory, WeightsError)


def test_a_config_that_does_not_fit_the_tokenizer(directory):
    edit(directory, image_token_id=9)
    assert "<|image_pad|>" in refused(directory, ProcessorError)


def test_a_directory_without_a_tokenizer(directory):
    (directory / "tokenizer.json").unlink()
    assert "tokenizer" in refused(directory, ProcessorError)


def test_a_directory_with_a_pickle_only(directory):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    assert "pickle" in refused(directory, WeightsError)
