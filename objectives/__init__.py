"""Group-relative RL as pure functions: arrays in, arrays out; compose, jit, vmap, differentiate.

A loss is a term per token, an advantage per sample, and a reduction:

    advantages = joint_zscore(rewards)                                      # [B, M, G]
    term = clipped_surrogate(token_log_ratio(logp, behaviour, mask), advantages, high=0.28)
    loss = token_mean(term, mask) + 0.04 * token_mean(kl_estimate(logp, reference, mask), mask)

Axes: B prompts, M variants of a video (or branches), G samples, L completion tokens, K windows,
N hypotheses. A mask is True where a token or a reward counts. Only `logp` is differentiated.

    term                          paper (arXiv)         function                    default
    ----------------------------------------------------------------------------------------------
    z-score in the group          GRPO 2402.03300       group_zscore                ddof 1, eps 1e-4
    mean only                     Dr.GRPO 2503.20783    group_centred
    leave one out                 RLOO 2402.14740       leave_one_out               over "group"
    std of the batch              Lite PPO 2508.08221   batch_zscore                ddof 1, eps 1e-4
    moving std of the task        OneThinker 2512.03043 task_ema                    decay 0.99, ±5
    joint over M x G              STRIVE 2604.01824     joint_zscore                ddof 1, eps 1e-4
    joint + per variant           Share-GRPO 2505.16673 share_grpo                  eps 1e-6
    (1 - w) joint + w per variant reconstructed         mixture                     w 0.5
    within + between variants     reconstructed         hierarchical                w 1
    any mean, any std                                   normalise                   "group", "group"
    each reward on its own        GDPO 2601.05242       gdpo                        weights 1
    ratio of a token              GRPO                  token_log_ratio             clamped to ±20
    ratio of a sequence           GSPO 2507.18071       sequence_log_ratio
    clip: low, high, dual, delta  PPO 1707.06347, ...   clipped_surrogate           0.2, = low, off
    bounded weight, no clip       CISPO 2506.13585      clipped_weight              cap 5
    no ratio at all               Williams 1992         policy_gradient
    KL: k1, k2, k3                Schulman 2020         kl_estimate                 k3, unbounded
    KL over the vocabulary                              full_kl
    entropy; its top tokens       80/20 2506.01939      entropy, high_entropy_keep  20 %
    sampler mismatch              TIS, MIS              importance_weights          sequence, max 3
    stale bad samples             DeepSeek 2512.02556   off_policy_keep
    reduction: each sequence      GRPO                  mean_of_sequence_means
    reduction: each token         DAPO 2503.14476       token_mean
    reduction: constant length    Dr.GRPO               constant_length
    reduction: sum of a sequence  RLOO                  mean_of_sequence_sums
    hypotheses as one action      SPIKE-RL 2509.23433   spike_rl_loss
    behaviour of the other branch CRPO 2605.21988       crr_terms, crpo_rewards     0.5, "mean"
    shuffled frames               T-GRPO 2503.21776     t_grpo_bonus                0.3, ratio 0.8
    reversed video                ArrowRL 2506.03340    arrow_rl_reward             α 0.25, γ 0.75
    reversed grounding            ArrowGEV 2601.06559   arrow_gev_reward            w 0.5
    overlong answers              DAPO                  overlong_penalty            4096 of 20480
    wanted length                 Video-R1 2503.21776   length_bonus                0.2, 320 to 512
    diversity of hypotheses       SPIKE-RL              pairwise_diversity
    text graders                                        grade_*, rouge_*, format_reward, ...
    to log: groups without signal                       zero_signal_share
    to log: tokens clipped                              clip_shares

Ten compositions, on a batch of two prompts with two variants, four samples, five tokens:

>>> import jax, jax.numpy as jnp
>>> from objectives import *
>>> tokens = jnp.arange(80.0).reshape(2, 2, 4, 5)
>>> logp, behaviour, reference = (-1.0 - 0.5 * jnp.sin(tokens * step) for step in (1, 2, 3))
>>> mask = tokens % 5 <= tokens // 5 % 5  # 1 to 5 tokens
>>> rewards = jnp.array([[[1.0, 0, 0, 1], [1, 1, 1, 0]], [[0, 0, 0, 0], [1, 1, 0, 0]]])
>>> def show(loss): print(f"{float(loss):.4f}")

1. GRPO, with its KL; `grpo_loss` is the first two lines.

>>> ratio = token_log_ratio(logp, behaviour, mask)
>>> loss = mean_of_sequence_means(clipped_surrogate(ratio, group_zscore(rewards)), mask)
>>> show(loss + 0.04 * mean_of_sequence_means(kl_estimate(logp, reference, mask), mask))
0.0956

2. Dr.GRPO: no std, no length in the denominator.

>>> show(constant_length(clipped_surrogate(ratio, group_centred(rewards)), mask, length=5))
0.0324

3. DAPO: clip higher, every token the same, a soft limit of length.

>>> shaped = rewards + overlong_penalty(jnp.sum(mask, -1), longest=6, cache=2)
>>> show(token_mean(clipped_surrogate(ratio, group_zscore(shaped), high=0.28), mask))
0.3144

4. GSPO: the same three pieces with the ratio of the sequence.

>>> sequence = sequence_log_ratio(logp, behaviour, mask)
>>> term = clipped_surrogate(sequence, group_zscore(rewards), low=3e-4, high=4e-4)
>>> show(mean_of_sequence_means(term, mask))
0.0672

5. CISPO with a correction for the sampler's probabilities.

>>> term = clipped_weight(logp, ratio, group_zscore(rewards))
>>> weights = importance_weights(behaviour, reference, mask, level="token", mode="truncate")
>>> show(token_mean(weights * term, mask))
0.0195

6. RLOO: REINFORCE against the others' mean.

>>> show(reinforce_loss(logp, leave_one_out(rewards), mask))
0.0501

7. STRIVE: variants compared with each other.

>>> show(grpo_loss(logp, behaviour, joint_zscore(rewards), mask))
0.1152

8. CRPO: the variants are the video and its altered copy, here with joint normalisation.

>>> correct, other = rewards[:, 0] > 0, rewards[:, 1] > 0
>>> behaved = behaves(other, jnp.ones_like(other), is_dynamic(jnp.array([Router.TEMPORAL, 3])))
>>> branches = jnp.stack(crpo_rewards(correct, behaved), axis=1)
>>> show(grpo_loss(logp, behaviour, joint_zscore(branches), mask))
0.0629

9. OneThinker: one scale a task, kept from batch to batch; here a task a prompt.

>>> task = jnp.array([[0, 0], [1, 1]])
>>> moments = update_task_moments(TaskMoments.zeros(2), rewards, task)
>>> show(dapo_loss(logp, behaviour, task_ema(rewards, task, moments), mask))
0.1056

10. SPIKE-RL: K = 2 windows of N = 4 hypotheses are one action; here a trajectory a prompt.

>>> advantages = normalise(jnp.array([0.7, 0.2]), eps=1e-6)
>>> loss = spike_rl_loss(logp, advantages, mask)
>>> show(loss + 0.1 * token_mean(kl_estimate(logp, reference, mask), mask))
-1.8356
"""

from objectives.advantages import (
    TaskMoments,
    batch_zscore,
    between_variant_variance,
    gdpo,
    group_centred,
    group_zscore,
    hierarchical,
    joint_zscore,
    leave_one_out,
    mixture,
    normalise,
    share_grpo,
    task_ema,
    update_task_moments,
    zero_signal_probability,
    zero_signal_share,
)
from objectives.crr import (
    Branches,
    Router,
    arrow_gev_reward,
    arrow_rl_reward,
    behaves,
    crpo_rewards,
    crr_terms,
    is_dynamic,
    t_grpo_bonus,
)
from objectives.masked import (
    constant_length,
    mean_of_sequence_means,
    mean_of_sequence_sums,
    sequence_mean,
    sequence_sum,
    token_mean,
)
from objectives.policy import (
    cispo_loss,
    clip_shares,
    clipped_surrogate,
    clipped_weight,
    dapo_loss,
    dr_grpo_loss,
    entropy,
    full_kl,
    grpo_loss,
    gspo_loss,
    gspo_token_log_ratio,
    high_entropy_keep,
    importance_weights,
    kl_estimate,
    off_policy_keep,
    policy_gradient,
    reinforce_loss,
    sequence_log_ratio,
    spike_rl_loss,
    token_log_ratio,
)
from objectives.rewards import (
    Grade,
    answer_text,
    format_reward,
    grade_interval,
    grade_numeric,
    grade_option,
    grade_yes_no,
    length_bonus,
    llm_match,
    mean_relative_accuracy,
    ocr_reward,
    overlong_penalty,
    pairwise_diversity,
    parse_interval,
    parse_judge,
    parse_number,
    parse_option,
    parse_yes_no,
    relative_accuracy,
    rouge_l,
    rouge_mean,
    rouge_n,
    temporal_iou,
    word_error_rate,
)
