"""What the bundled models know, on a few clips; `saccade evaluate` measures it on many."""

import pytest

import vlm
from experiments.arguments import plain
from experiments.configs.score import get_config
from experiments.examiner import Examiner
from experiments.gates import gates
from experiments.options import Options
from vlm.loading import BUNDLED


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_model_sees_what_happens(name):
    settings = Options.from_config(plain(get_config("toy"))).settings
    examiner = Examiner(vlm.load(name, dtype="float32"), batch=24)
    figures, _ = gates(examiner, settings, windows=12, clips=0, seed=5)
    found = {name: estimate.value for name, estimate in figures.items()}
    assert found["last_frame_plain"] > 0.6 and found["next_statement"] > 0.6
    assert found["claims"] > found["claims_swapped"] + 0.1
