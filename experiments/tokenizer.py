"""Writes the bundled tokenizer, `vlm/tiny/`: `python -m experiments.tokenizer DIR`.

A byte-level BPE trained on what is said about the toy world, and on the prompts that the package
asks. The same code gives the same files.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np

from data.toyquestions import prompt, questions
from data.toyscene import SIZE
from data.toytasks import CAPTION_REQUEST
from data.toywords import caption, description, futures, statements
from data.toyworld import Clip, simulate
from surprise.hypotheses import Prompts
from vlm.config import TINY
from vlm.tokenizer import ChatTokenizer, byte_level_bpe

# Position in the list is the token id; `vlm.config.TINY` names the vision ones.
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# Turns as in ChatML: role, then text, pictures and clips in the order given, then the end mark. A
# conversation without a system turn of its own gets the usual one.
CHAT_TEMPLATE = """\
{%- if messages[0].role != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string -%}
{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}
{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part.type == 'video' -%}
{{ '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- elif part.type == 'text' -%}
{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""

# Words of other prompts than ours, so that those too come in few tokens.
OTHERS = (
    "Here is what has happened so far from the beginning. Nothing has happened so far.",
    "Based on this and on the recent frames, predict what happens next. Output format: Hypothesis:",
    "Something else happens that none of these statements describe.",
    "Is this statement true in the CURRENT frame? Answer 'yes' or 'no'. Answer yes or no.",
    "Describe what is happening in the last and most recent frame, in 20 words.",
    "Summarize the events. Caption this video. The best answer is: I do not know.",
    "Question: Options: (A) (B) (C) (D) (E). Answer with the letter only. Think step by step.",
    "Is the video played forward or in reverse? Was anything unexpected? When did it happen? Why?",
    "Reference: Response: Score: Picture 1: Video 1: image: frame: second:",
    "You are a helpful assistant.",
    "system\nuser\nassistant\n",
)
ANSWERS = ("yes", "no", "Yes", "No", " yes", " no", "A", "B", "C", "D", "(A)", "(B)", "(C)", "(D)")
_STEPS = 4  # of each clip that are put into words


def corpus(scenes: int = 1500) -> list[str]:
    """Makes the training text: all that is said and asked about clips of the toy world."""
    prompts = Prompts()
    lines = []
    for index in range(scenes):
        level = ("full", "full", "brief")[index % 3]
        scene = simulate(index, level=level)
        rng = np.random.default_rng(index)
        lines.append(caption(scene))
        for step in rng.integers(1, scene.steps, _STEPS).tolist():
            lines.append(description(scene, step))
            lines += futures(scene, step, rng, 3)
            claims = statements(scene, step)
            chosen = claims[rng.integers(len(claims))]
            lines.append(prompts.probe_text(chosen.text))
        for example in questions(Clip(scene, np.zeros((scene.steps, SIZE, SIZE, 3), np.uint8)))[
            :_STEPS
        ]:
            lines.append(prompt(example, by="word")[0])
            lines.append(prompt(example, by="letter")[0])
    ours = [*dataclasses.asdict(prompts).values(), CAPTION_REQUEST]
    times = [f"<{tenths / 10:.1f} seconds>" for tenths in range(0, 160, 5)]
    return lines + [*ours, *ANSWERS, *times] * (scenes // 10) + [*OTHERS] * (scenes // 100)


def train() -> ChatTokenizer:
    """Trains the tokenizer of the bundled models."""
    from tokenizers import AddedToken, pre_tokenizers, trainers

    tokenizer = byte_level_bpe()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY.text.vocab,
        min_frequency=2,
        show_progress=False,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer_config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 32_768,
        "additional_special_tokens": list(SPECIAL[1:]),
    }
    return ChatTokenizer(tokenizer, tokenizer_config, CHAT_TEMPLATE)


def main(directory: str) -> None:
    train().save(Path(directory))


if __name__ == "__main__":
    main(*sys.argv[1:])
