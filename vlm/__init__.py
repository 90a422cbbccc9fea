"""Qwen2.5-VL and Qwen3-VL in Flax NNX: load them, run them, save them.

vlm = load("path/to/Qwen2.5-VL-7B-Instruct")
inputs = vlm.processor(["<|vision_start|><|video_pad|><|vision_end|>What happens?"], [[video]])
logits = forward(vlm.model, inputs)
"""

from vlm.config import VLMConfig
from vlm.inputs import Inputs
from vlm.loading import VLM, load, save
from vlm.model import Model, forward

__all__ = ["VLM", "Inputs", "Model", "VLMConfig", "forward", "load", "save"]
