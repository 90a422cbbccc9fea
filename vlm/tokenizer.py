"""Text to token ids and back, and conversations to prompts, without `transformers`.

Reads the files of a Hugging Face directory through the `tokenizers` library; the chat template
runs in jinja's sandbox.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Message = Mapping[str, Any]
"""`{"role": ..., "content": text or [{"type": "text"|"image"|"video", ...}, ...]}`."""

# Qwen2's pre-tokenizer: contractions, words with one leading mark, single digits, runs of marks.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# A Unicode noncharacter, never part of real text: written inside "<|" so that it opens no token.
_GUARD = "\ufdd0"


class ProcessorError(ValueError):
    """A model directory without a usable tokenizer, template or preprocessor file."""


def escape(text: str) -> str:
    """Marks text so that "<|image_pad|>" and its like in it are read as plain characters.

    For text that nobody vouches for (captions, questions, model output) inside a hand-written
    prompt; `ChatTokenizer.render` does this to every message by itself. The mark is taken out
    again before the tokenizer sees the text, so the model reads exactly what was written.
    """
    return text.replace(_GUARD, "").replace("<|", f"<{_GUARD}|")


def byte_level_bpe(
    vocab: Mapping[str, int] | None = None, merges: Sequence[tuple[str, str]] | None = None
) -> Tokenizer:
    """Builds Qwen2's pipeline (NFC, word pattern, byte-level BPE), without added tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab=dict(vocab or {}), merges=list(merges or [])))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


class ChatTokenizer:
    """A tokenizer with its chat template and the contents of `tokenizer_config.json`.

    `special` maps the text of every special token to its id, `pad` is the id that fills short
    rows, `stops` are the ids that end an assistant's turn.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        tokenizer_config: Mapping[str, Any],
        chat_template: str | None,
    ):
        from tokenizers import Tokenizer as Backend

        self.tokenizer_config = dict(tokenizer_config)
        self.chat_template = chat_template
        # A copy of our own, switched to read special tokens as plain text: they enter as ids only.
        self._backend = Backend.from_str(tokenizer.to_str())
        self._backend.encode_special_tokens = True
        added = self._backend.get_added_tokens_decoder()
        self.special = {token.content: index for index, token in added.items() if token.special}
        names = sorted(self.special, key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(map(re.escape, names))})")
        named = [_content(self.tokenizer_config.get(f"{role}_token")) for role in ("pad", "eos")]
        self.pad: int = self.special.get(named[0] or "<|endoftext|>", 0)
        stops = [self.special.get(name) for name in (named[1], "<|im_end|>", "<|endoftext|>")]
        self.stops: tuple[int, ...] = tuple(dict.fromkeys(i for i in stops if i is not None))

    @property
    def size(self) -> int:
        """Number of token ids that have a text."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> ChatTokenizer:
        """Reads a directory with `tokenizer.json`, or `vocab.json` and `merges.txt` as Qwen2's.

        The template may be `chat_template.jinja`, `chat_template.json` or in
        `tokenizer_config.json`. Raises ProcessorError, one line, where there is no tokenizer.
        """
        directory = Path(directory)
        tokenizer_config = read_json(directory / "tokenizer_config.json")
        template = _read_template(directory, tokenizer_config)
        return cls(_read_tokenizer(directory, tokenizer_config), tokenizer_config, template)

    def save(self, directory: Path) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`, the template in the latter."""
        self._backend.save(str(directory / "tokenizer.json"))
        tokenizer_config = {"tokenizer_class": "Qwen2Tokenizer"} | self.tokenizer_config
        if self.chat_template:
            tokenizer_config["chat_template"] = self.chat_template
        write_json(directory / "tokenizer_config.json", tokenizer_config)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """Writes a conversation as prompt text; see `Processor.render`."""
        if not self.chat_template:
            raise ValueError("this model has no chat template; pass the prompt as text")
        return _compiled(self.chat_template).render(
            messages=_escaped(list(messages)),
            add_generation_prompt=add_generation_prompt,
        )

    def encode(self, text: str) -> list[int]:
        """Turns text into token ids; special tokens in it count as such, and as borders."""
        ids: list[int] = []
        for piece in self._split.split(text):
            if piece in self.special:
                ids.append(self.special[piece])
            elif piece:
                ids += self._plain(piece)
        return ids

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special_tokens: bool) -> str:
        """Turns token ids into text."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    def _plain(self, text: str) -> list[int]:
        return self._backend.encode(text.replace(_GUARD, ""), add_special_tokens=False).ids


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file, {} where the file is absent; raises ProcessorError."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ProcessorError(f"{path} is not JSON: {error}") from None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes an object as indented JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _escaped(value: Any) -> Any:
    """Every string in a message escaped, whatever field of it the template reads."""
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, Mapping):
        return {key: _escaped(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(entry) for entry in value]
    return value


@functools.cache
def _compiled(source: str):
    """Compiles a chat template in the sandbox, with the extras that templates may use."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str):
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(source)


def _content(token: Any) -> str | None:
    """A special token of `tokenizer_config.json`: a string, or a mapping with its content."""
    return token.get("content") if isinstance(token, Mapping) else token


def _read_tokenizer(directory: Path, tokenizer_config: Mapping[str, Any]) -> Tokenizer:
    from tokenizers import AddedToken, Tokenizer

    if (whole := directory / "tokenizer.json").is_file():
        read_json(whole)  # a clear error for a broken file
        return Tokenizer.from_file(str(whole))
    vocab, merges = directory / "vocab.json", directory / "merges.txt"
    if not (vocab.is_file() and merges.is_file()):
        raise ProcessorError(
            f"{directory} has no tokenizer: neither tokenizer.json nor vocab.json with merges.txt"
        )
    pairs = [
        tuple(line.split(" "))
        for line in merges.read_text(encoding="utf-8").split("\n")
        if line and not line.startswith("#version")
    ]
    tokenizer = byte_level_bpe(read_json(vocab), pairs)
    added = tokenizer_config.get("added_tokens_decoder") or {}
    wanted = {int(index): token for index, token in added.items()}
    tokenizer.add_tokens([AddedToken(**wanted[index]) for index in sorted(wanted)])
    for index, token in wanted.items():
        if tokenizer.token_to_id(token["content"]) != index:
            raise ProcessorError(f"{directory}: {token['content']} cannot get its id {index}")
    return tokenizer


def _read_template(directory: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    if (plain := directory / "chat_template.jinja").is_file():
        return plain.read_text(encoding="utf-8")
    template = read_json(directory / "chat_template.json").get("chat_template")
    template = template or tokenizer_config.get("chat_template")
    if isinstance(template, list):  # several templates by name
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template
