"""A small store with its windows, and a random model."""

import pytest

from mortm_hf.evaluation.fixed_windows import encode_windows, fixed_windows
from mortm_hf.models.configuration_mortm import MortmConfig
from mortm_hf.models.modeling_mortm import MortmForCausalLM
from mortm_hf.models.token_vocabulary import MetricVocabulary, default_tokens
from tests.sample_songs import store


@pytest.fixture(scope="package")
def vocabulary():
    return MetricVocabulary({token: index for index, token in enumerate(default_tokens())})


@pytest.fixture(scope="package")
def windows(vocabulary):
    """(store of four songs, their eight windows as tokens)."""
    songs = store(4, 34)
    return songs, encode_windows(vocabulary, songs, fixed_windows(songs), 4096)[0]


@pytest.fixture(scope="package")
def model():
    import torch

    torch.manual_seed(0)
    config = MortmConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, moe_intermediate_size=16,
                         shared_expert_intermediate_size=16, num_local_experts=2)  # fmt: skip
    return MortmForCausalLM(config)
