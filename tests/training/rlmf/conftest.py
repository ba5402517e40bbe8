"""Small models, songs and prompts for the tests of reinforcement learning."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from mortm_hf.models.configuration_bertm import BertmConfig
from mortm_hf.models.configuration_mortm import MortmConfig
from mortm_hf.models.modeling_bertm import BertmForSequenceClassification
from mortm_hf.models.modeling_mortm import MortmForCausalLM
from mortm_hf.models.prompt_building import MetricPrompt, build_prompt
from mortm_hf.models.tokenization_mortm import MortmTokenizer


os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")


@pytest.fixture(scope="session")
def tokenizer():
    return MortmTokenizer()


@pytest.fixture(scope="session")
def policy_folder(tokenizer, tmp_path_factory):
    """A tiny mixture of experts, with its tokenizer, in a folder."""
    folder = tmp_path_factory.mktemp("policy")
    torch.manual_seed(0)
    config = MortmConfig(
        vocab_size=len(tokenizer.vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        num_local_experts=4,
        attention_dropout=0.5,
        hidden_dropout=0.5,
        max_position_embeddings=512,
        initializer_range=0.3,
    )
    MortmForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def judge_folder(tokenizer, tmp_path_factory):
    """A tiny BERTM with one logit."""
    folder = tmp_path_factory.mktemp("judge")
    torch.manual_seed(1)
    config = BertmConfig(
        vocab_size=len(tokenizer.vocabulary),
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        mlp_layer_types=["dense", "dense"],
        num_labels=1,
        max_position_embeddings=512,
        initializer_range=0.3,
    )
    BertmForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def prompt_ids(tokenizer):
    """Prompts of different lengths and kinds: a melody, drums, two tracks over chords, velocities."""
    requests = [
        MetricPrompt(instruments=["piano"], bars=2, key="C major", meter="4/4", tempo=120),
        MetricPrompt(instruments=["violin"], bars=1, key="A minor", meter="3/4", tempo=90, genre="folk"),
        MetricPrompt(instruments=["piano", "drums"], bars=1, meter="4/4"),
        MetricPrompt(instruments=["flute"], bars=2, chords=["C", "G7"], meter="4/4", key="C major"),
    ]
    return [build_prompt(tokenizer.vocabulary, r).ids.astype(np.int64) for r in requests]


@pytest.fixture(scope="session")
def prompts(prompt_ids):
    """The same as `Prompt` objects, several times over."""
    from mortm_hf.training.rlmf.prompts import Prompt

    rows = [prompt_ids[i % len(prompt_ids)] for i in range(16)]
    return [Prompt(ids, np.zeros(0, np.int64), f"song-{i}", "test", f"song-{i}", 0, 2) for i, ids in enumerate(rows)]


@pytest.fixture
def masked_policy(policy_folder, tokenizer):
    from mortm_hf.training.rlmf.policy import load_policy

    policy = load_policy(policy_folder)
    policy.set_grammar(tokenizer, 40)
    return policy
