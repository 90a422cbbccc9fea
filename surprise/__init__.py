"""SPIKE: beliefs about a video, how far each frame moves them, and frames chosen by that."""

from surprise.divergence import evidence, js_divergence, kl_divergence, log_evidence
from surprise.frames import Question, Selection, export, select_frames
from surprise.hypotheses import Prompts
from surprise.record import Step, Trace, TraceError, select
from surprise.schedule import TooShortError, episode_frames, frame_indices, time_steps
from surprise.settings import Settings, SettingsError
from surprise.trace import (
    BeliefError,
    Context,
    Episode,
    Generation,
    Sampling,
    VideoModel,
    Viewing,
    advance,
    begin,
    stretches,
    watch,
)
