"""RLMF: reinforcement learning from music feedback, on TRL's `PPOTrainer`.

The parts: `policy` (MORTM with its grammar inside `forward`, and the critic), `rules` and `rewards` (what is asked of
the music), `prompts` (first bars of songs), `ppo` (PPO), `group` (GRPO, RLOO), `comparison` (before and after),
`feedback_recipe` and `feedback_run` (one YAML file, one command).

Knows: `mortm_hf.data`, `mortm_hf.models`, TRL (imported by those who train only). Must not know: the command line,
how pictures are drawn (a drawing function is handed in).
"""
