"""A tiny training run as a program, for tests that need a process to kill or several processes (from the root):

python -m tests.training.tiny_run RECIPE.yaml --output_dir FOLDER [--field value ...]
"""

import sys

import torch

from mortm_hf.data.score_store import ScoreStore
from mortm_hf.evaluation.fixed_windows import encode_windows, fixed_windows
from mortm_hf.models.tokenization_mortm import MortmTokenizer
from mortm_hf.training.tasks import pretrain_task, read_recipe
from tests.sample_songs import store


TINY = """
model:
  {hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, moe_intermediate_size: 16,
   shared_expert_intermediate_size: 16, num_local_experts: 4}
data:
  row_length: 256
  rows: 2
  packs_per_epoch: 4
  generated_bars: [2, 3]
  past_bars: [1, 3]
  tasks: {continue: 3, infill: 1}
  corpora: {band: {weight: 1}, lead: {weight: 1}}
training:
  {seed: 7, max_steps: 8, decay_steps: 3, warmup_steps: 2, learning_rate: 0.003, use_cpu: true, logging_steps: 1,
   save_minutes: 0, attention: sdpa_documents, experts_implementation: grouped_mm, router_every: 4,
   tensorboard: false, eval_tokens: 1500}
"""


def stores() -> dict[str, ScoreStore]:
    """Songs to train on, and others."""
    songs = store(8, 20).songs
    return {"train": ScoreStore(songs[:6]), "validation": ScoreStore(songs[6:])}


def windows(validation: ScoreStore):
    """Encoded windows of four given and four new bars."""
    listed = fixed_windows(validation, 4, 4)
    return encode_windows(MortmTokenizer().vocabulary, validation, listed, 4096, 4, 4)[0]


def run(recipe, words, validate: bool = True):
    """The trainer of a finished (or interrupted) tiny run."""
    songs = stores()
    return pretrain_task.train(read_recipe(recipe, words), songs, windows(songs["validation"]) if validate else None)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(sys.argv[1], sys.argv[2:])
