"""The recipe of a run: its sections, any plain field of which the command line can override.

Design decisions
- `model`, `data` and `run` are dataclasses of ours, `training` is TRL's `PPOConfig`; `reward` is a list of terms. A
  recipe states everything a run depends on.
- Where `PPOConfig`'s own defaults would break a run on music (bf16 on CPUs, its text samples, temperature 0.7, no
  stop token) others stand here, once.
- The sections can be read without TRL, which takes ten seconds to import; `training` becomes a `PPOConfig` last.

Knows: the parser of recipes, dataclasses. Must not know: models, songs, trainers.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser

from ...data.manifest import Selection
from ...models.errors_mortm import RlmfError, TrainingError
from ..arguments import selection_of
from ..recipe import RecipeKind, find_recipe, parse_recipe
from .prompts import PromptRecipe
from .trl_release import require_trl


ALGORITHMS = ("ppo", "grpo", "rloo")
TRAINING_DEFAULTS = {
    "num_mini_batches": 2,
    "num_ppo_epochs": 1,
    "per_device_train_batch_size": 32,
    "gradient_accumulation_steps": 1,
    "local_rollout_forward_batch_size": 64,
    "response_length": 96,
    "learning_rate": 1e-4,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "kl_coef": 0.05,
    "gamma": 1.0,
    "temperature": 1.0,
    "stop_token": "eos",
    "num_sample_generations": 0,
    "bf16": False,
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "tensorboard",
}
# what these would change is masked, refused or done otherwise here
_NOT_OURS = {
    "reward_model_path": "name judges under reward",
    "sft_model_path": "name the policy under model",
    "stop_token_id": "answers end with <TE>",
    "resume_from_checkpoint": "PPOTrainer cannot resume: give --resume the folder of a saved pair",
}


@dataclass
class ModelSection:
    """Who learns, and from whom."""

    policy: str = field(default="", metadata={"help": "MORTM folder or repository; empty: the bundled starter"})
    reference: str = field(default="", metadata={"help": "what the KL is measured to; empty: the policy"})
    judge: str = field(default="", metadata={"help": "BERTM folder, over those that the reward's judges name"})
    resume: str = field(default="", metadata={"help": "saved pair (policy and value/) to go on from"})
    critic_layers: int = field(default=0, metadata={"help": "lowest layers of the policy in the critic; 0: all"})
    critic_hidden: int = field(default=0, metadata={"help": "width of a hidden layer in the critic's head; 0: none"})
    experts: str = field(default="", metadata={"help": "transformers' experts interface: eager, grouped_mm, ..."})
    attention: str = field(default="", metadata={"help": "attention implementation; empty: transformers' choice"})
    lora_rank: int = field(default=0, metadata={"help": "train adapters of this rank; 0: all weights"})
    lora_targets: str = field(
        default="q_proj,k_proj,v_proj,o_proj", metadata={"help": "modules with an adapter, separated by commas"}
    )


@dataclass
class DataSection:
    """Which songs are continued, and how."""

    data: str = field(default="", metadata={"help": "training pack, data set or MIDI folder"})
    cache: str = field(default="", metadata={"help": "folder for prepared songs; by default <output_dir>/stores"})
    split: str = field(default="train", metadata={"help": "split that prompts are taken from"})
    limit: int = field(default=0, metadata={"help": "take at most so many prompts; 0: all"})
    past: int = field(default=4, metadata={"help": "bars given at most"})
    bars: int = field(default=2, metadata={"help": "bars to generate"})
    tracks: int = field(default=1, metadata={"help": "first so many sounding tracks of a song; 0: all"})
    least_tracks: int = field(default=1, metadata={"help": "songs of fewer such tracks give no prompt"})
    prompt_length: int = field(default=128, metadata={"help": "most tokens of a prompt"})
    chords: bool = field(default=False, metadata={"help": "give the chords of songs that have them"})
    corpora: dict[str, dict] = field(
        default_factory=dict, metadata={"help": "corpora that prompts are taken from, as '{lieder: {}}'; none: all"}
    )


@dataclass
class RunSection:
    """How it is run."""

    algorithm: str = field(default="ppo", metadata={"help": "ppo, grpo or rloo"})
    group: int = field(default=4, metadata={"help": "answers to a prompt (grpo, rloo)"})
    critic_learning_rate: float = field(default=0.0, metadata={"help": "of the critic; 0: the policy's"})
    target_kl: float = field(default=0.0, metadata={"help": "KL in nats a sequence to hold; 0: kl_coef stays"})
    kl_horizon: int = field(default=1000, metadata={"help": "episodes in which the coefficient adapts"})
    sample_every: int = field(default=10, metadata={"help": "updates between MIDI samples; 0: none"})
    sample_count: int = field(default=4, metadata={"help": "prompts that samples continue"})
    threads: int = field(default=0, metadata={"help": "torch threads; 0 leaves torch's choice"})


@dataclass
class RewardSection:
    """What is rewarded.

    Attributes:
        terms: see `rewards.build_reward`.
        whiten: see `rewards.Shaping`.
        clip: bounds of the reward, the lower one first, or None.
        baseline: "human" takes from each row what the song's own continuation is given (`rewards.HumanBaseline`).
    """

    terms: list[dict] = field(default_factory=list)
    whiten: bool = False
    clip: list[float] | None = None
    baseline: str = ""

    def __post_init__(self):
        if self.clip is not None and not (len(self.clip) == 2 and self.clip[0] < self.clip[1]):
            raise RlmfError(f"clip takes two bounds, the lower one first, got {self.clip}")
        if self.baseline not in ("", "human"):
            raise RlmfError(f"baseline is human or nothing, got {self.baseline!r}")


KIND = RecipeKind(
    "rlmf",
    ModelSection,
    DataSection,
    "every field of TRL's PPOConfig is an option",
    options={"run": RunSection},
    own={"reward": RewardSection},
)


@dataclass
class Recipe:
    """A recipe, read.

    Attributes:
        model: who learns, and from whom.
        data: which songs are continued, and how.
        run: how it is run.
        reward: what is rewarded.
        training: fields of `PPOConfig`, as text or values.
    """

    model: ModelSection
    data: DataSection
    run: RunSection
    reward: RewardSection
    training: dict

    @property
    def corpora(self) -> dict[str, dict]:
        """The corpora that prompts are taken from, with their filters."""
        return self.data.corpora

    def selection(self) -> Selection:
        """The files of these corpora."""
        return selection_of(self.corpora)

    def prompts(self) -> PromptRecipe:
        """How prompts are cut."""
        data = self.data
        return PromptRecipe(
            past=data.past,
            bars=data.bars,
            tracks=data.tracks,
            least_tracks=data.least_tracks,
            prompt_length=data.prompt_length,
            response_length=int(self.training["response_length"]),
            chords=data.chords,
        )

    def stated(self) -> dict:
        """Everything, for a record beside the results."""
        return dataclasses.asdict(self)

    @classmethod
    def restated(cls, stated: dict) -> Recipe:
        """The recipe that `stated` (of a run's `recipe.json`) came from."""
        kinds = {"model": ModelSection, "data": DataSection, "run": RunSection, "reward": RewardSection}
        parts = {name: dict(stated[name]) for name in (*kinds, "training")}
        if "corpora" in stated:  # as runs stated them once
            parts["data"]["corpora"] = {name: rule or {} for name, rule in stated["corpora"].items()}
        return cls(**parts | {name: kind(**parts[name]) for name, kind in kinds.items()})

    def arguments(self, output_dir: str | Path):
        """TRL's `PPOConfig`.

        Raises:
            RlmfError: TRL is missing or another release, or a value it does not accept.
        """
        require_trl()
        import torch
        from trl.experimental.ppo import PPOConfig

        values = dict(self.training, output_dir=str(output_dir))
        if not torch.cuda.is_available():
            values["use_cpu"] = True
        words = []
        for name, value in values.items():
            if value is not None:
                words += [f"--{name}", *([str(v) for v in value] if isinstance(value, list) else [str(value)])]
        try:
            (found,) = HfArgumentParser(PPOConfig, exit_on_error=False).parse_args_into_dataclasses(words)
        except Exception as error:  # argparse and transformers each have their own
            raise RlmfError(f"training: {' '.join(str(error).split())[:300]}") from None
        found.disable_tqdm = True  # a bar of our own
        return found


def read_recipe(path: str | Path, overrides: list[str] = ()) -> Recipe:
    """A recipe file, and words of the command line such as `["--kl_coef", "0.1"]`.

    Args:
        path: YAML file, or the name of a recipe of the package (`rlmf_rules` for `recipes/rlmf_rules.yaml`).
        overrides: `--field value` words.

    Raises:
        RlmfError: no such file; unknown sections, fields or words (named); values that make no run.
    """
    try:
        file = find_recipe(path, "rlmf_*")
        found = parse_recipe(file, overrides, KIND)
    except TrainingError as error:
        raise RlmfError(str(error)) from None
    model, run, reward = found.model, found.others["run"], found.others.get("reward") or RewardSection()
    for name, remedy in _NOT_OURS.items():
        if name in found.training:
            raise RlmfError(f"{file}: {name} is not used here: {remedy}")
    judges = [term for term in reward.terms if isinstance(term, dict) and term.get("kind") == "judge"]
    if model.judge and not judges:
        raise RlmfError(f"{file}: judge is given, but the reward has no term of the kind judge")
    if model.judge:
        for term in judges:
            term["model"] = model.judge
    if run.algorithm not in ALGORITHMS:
        raise RlmfError(f"{file}: no algorithm {run.algorithm!r}; there are {', '.join(ALGORITHMS)}")
    return Recipe(model, found.data, run, reward, {**TRAINING_DEFAULTS, **found.training})
