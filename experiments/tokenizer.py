"""Writes the bundled tokenizer, `vlm/tiny/`: `python -m experiments.tokenizer DIR`.

A byte-level BPE trained on sentences about moving shapes that a small grammar makes, and on the
kinds of prompt that the package asks. The same code gives the same files.
"""

from __future__ import annotations

import itertools
import random
import sys
from pathlib import Path

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

SIZES = ("small", "large", "big", "tiny")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black", "gray", "pink")
SHAPES = ("circle", "square", "triangle", "cross", "ring", "star", "ball", "object", "shape")
WAYS = ("left", "right", "up", "down")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
EVENTS = (
    "stays still",
    "bounces off the wall",
    "bounces",
    "turns back",
    "reverses",
    "stops",
    "vanishes",
    "disappears",
    "appears again",
    "jumps to another place",
    "splits into two",
    "merges with the other one",
    "grows",
    "shrinks",
    "speeds up",
    "slows down",
    "starts to move",
    "leaves the frame",
    "enters the scene",
    "passes behind the {shape}",
    "hits the {colour} {shape}",
    "turns {colour}",
    "becomes {colour}",
    "becomes a {shape}",
    "changes into a {colour} {shape}",
    "changes its colour",
    "changes direction",
    "moves faster",
    "moves slowly {way}",
    "keeps moving {way}",
    "will move {way}",
    "moves toward the {colour} {shape}",
    "moves away from the {colour} {shape}",
)
PROMPTS = (
    "Here is what has happened so far: {fact}",
    "Here is what happened so far from the beginning of the video: {fact}",
    "Nothing has happened so far.",
    "Based on this and on the recent frames of the video, answer in 8-10 words: what will most "
    "likely happen in the next frame?",
    "Given a summary of the video and its recent frames, predict what happens next. Output format: "
    "Hypothesis: 8-10 words.",
    "Here is what will happen next:",
    "What happens next? Answer in one short sentence.",
    "Something else happens that none of these statements describe.",
    "Statement: {fact}",
    "Is this statement true in the CURRENT frame? Answer 'yes' or 'no'.",
    "Is this statement true? Answer yes or no.",
    "Describe what is happening in the last and most recent frame.",
    "Describe this video in 20 words.",
    "Caption this video in 50-100 words.",
    "Summarize this video. Summarize the events so far in at most 200 words.",
    "Question: what color is the {shape}? Options: (A) {colour} (B) {colour} (C) {colour} (D) none",
    "Question: how many objects are there? Answer: {number}.",
    "Question: which came first? Answer with the letter only.",
    "What was odd or unexpected in this video? When did it happen?",
    "Where does the {colour} {shape} move? Which direction? Why?",
    "Is the video played forward or in reverse? Is it flipped or original?",
    "Think step by step, then give the final answer.",
    "The best answer is: none of the above. I do not know.",
    "Reference: {fact} Response: {fact} Score:",
    "You are a helpful assistant.",
    "system\nuser\nassistant\n",
    "At 0.5 seconds, 12.3 s: {fact}",
    "Frame 1, 2, 3, 4, 5, 6, 7, 8, 9, 0. Picture 1: Video 1: image: frame: second:",
)
ANSWERS = ("yes", "no", "Yes", "No", " yes", " no", "Answer: yes", "Answer: no", "true", "false")


def corpus(seed: int = 0, sentences: int = 3000) -> list[str]:
    """Makes the training text: statements about shapes, prompts around them, answers."""
    draw = random.Random(seed)

    def filled(pattern: str) -> str:
        return pattern.format(
            colour=draw.choice(COLOURS),
            shape=draw.choice(SHAPES),
            way=draw.choice(WAYS),
            number=draw.choice(NUMBERS),
            fact=fact() if "{fact}" in pattern else "",
        )

    def thing() -> str:
        size = f"{draw.choice(SIZES)} " if draw.random() < 0.2 else ""
        return f"{size}{draw.choice(COLOURS)} {draw.choice(SHAPES)}"

    def fact() -> str:
        kind = draw.randrange(6)
        if kind == 0:
            return f"There are {draw.choice(NUMBERS)} objects: a {thing()} and an {thing()}."
        if kind == 1:
            return f"A {thing()} is on the {draw.choice(WAYS)} side, near the {thing()}."
        if kind == 2:
            return f"the {thing()} is not moving; it is at the top, bottom, middle, center, corner."
        first, then = (filled(draw.choice(EVENTS)) for _ in range(2))
        link = draw.choice((", then ", " and ", ", but ", " while it "))
        lead = draw.choice(("The", "the", "Then the", "Now the", "Both: the"))
        return f"{lead} {thing()} moves {draw.choice(WAYS)}{link}{first if kind < 5 else then}."

    lines = [fact() for _ in range(sentences)]
    lines += [filled(prompt) for prompt in PROMPTS for _ in range(sentences // 100)]
    words = itertools.chain(ANSWERS, SIZES, COLOURS, SHAPES, WAYS, NUMBERS)
    return lines + [form for word in words for form in (word, f" {word}")] * (sentences // 100)


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
