"""How a run computes its experts where nothing is named."""

import pytest

from mortm_hf import MortmConfig, MortmForCausalLM
from mortm_hf.models.errors_mortm import TrainingError
from mortm_hf.training.tasks import read_recipe
from mortm_hf.training.weights import set_experts


@pytest.mark.parametrize(
    "words, chosen",
    [
        (["--bf16", "True"], "grouped_mm"),  # which the recipe states
        (["--experts_implementation", "auto"], "grouped_mm"),
        (["--experts_implementation", "auto", "--bf16", "True"], "padded_mm"),
        (["--experts_implementation", "", "--bf16", "True"], "padded_mm"),
        (["--experts_implementation", "auto", "--bf16", "True", "--sharding", "weights"], "grouped_mm"),
        (["--bf16", "True", "--experts_implementation", "eager"], "eager"),
        (["--experts_implementation", "padded_mm"], "padded_mm"),
    ],
)
def test_experts_of_a_run(words, chosen, tmp_path):
    words = ["--output_dir", str(tmp_path), "--use_cpu", "True", *words]
    arguments = read_recipe("starter", words).training
    model = MortmForCausalLM(MortmConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, eos_token_id=2))
    set_experts(model, arguments)
    assert model.config._experts_implementation == chosen
    arguments.experts_implementation = "nonsense"
    with pytest.raises(TrainingError, match="experts_implementation nonsense"):
        set_experts(model, arguments)
