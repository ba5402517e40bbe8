"""One run of reinforcement learning, from a recipe to a saved pair.

`python -m mortm_hf.training.rlmf RECIPE [--field value ...]`, also under `accelerate launch`.

Design decisions
- A run folder holds everything: the recipe, the prompts, `log.jsonl`, TensorBoard's events, MIDI samples, checkpoints
  and, at the end, `final/` (the policy, and the critic in `value/`).
- All that can be refused is refused before songs are read or anything is written: TRL's release first.
- Ctrl-C and SIGTERM end a run after the update under way, with a saved pair to go on from (`--resume`).
- Drawing is handed in (`draw`), because pictures belong to the command line.

Knows: all of this package. Must not know: argparse, matplotlib.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

from ...bundled import default_model, find_model
from ...data.open import build_store
from ...data.score_store import ScoreStore
from ...models.errors_mortm import RlmfError
from ...models.tokenization_mortm import MortmTokenizer
from ..run import command_line
from ..runlog import is_first_process
from .feedback_recipe import Recipe, read_recipe
from .policy import load_critic, load_policy, make_critic
from .prompts import Prompt, first_bar_prompts, prompt_dataset
from .rewards import HumanBaseline, RewardAdapter, Shaping, build_reward
from .trl_release import require_trl


def output_of(recipe: Recipe) -> Path:
    """The run's folder.

    Raises:
        RlmfError: the recipe names none.
    """
    folder = recipe.training.get("output_dir")
    if not folder:
        raise RlmfError("no folder for the run: give --output_dir")
    return Path(folder)


def _data_of(recipe: Recipe) -> str:
    if not recipe.data.data:
        raise RlmfError("no data: give the folder of a training pack with --data", "rlmf.data")
    if not Path(recipe.data.data).exists() and recipe.data.data.count("/") != 1:  # else a data set of the Hub
        raise RlmfError(f"there is no {recipe.data.data}: give the folder of a training pack with --data", "rlmf.data")
    return recipe.data.data


def read_songs(recipe: Recipe, output_dir: str | Path, split: str | None = None) -> ScoreStore:
    """The songs of a recipe's corpora.

    Raises:
        RlmfError: no data named, or not there.
    """
    _data_of(recipe)
    cache = recipe.data.cache or str(Path(output_dir) / "stores")
    return build_store(recipe.data.data, recipe.selection(), split or recipe.data.split, cache)


def make_prompts(recipe: Recipe, songs: ScoreStore, tokenizer, output_dir: str | Path | None = None) -> list[Prompt]:
    """The prompts of a run; with a folder, `prompts.json` lists them and the songs left out, with reasons."""
    prompts, skipped = first_bar_prompts(songs, tokenizer, recipe.prompts(), recipe.data.limit)
    if not prompts:
        first = f" ({skipped[0][0]}: {skipped[0][1]})" if skipped else ""
        raise RlmfError(f"none of {len(songs)} songs gives a prompt{first}: allow longer prompts", "rlmf.data")
    if output_dir is not None and is_first_process():
        listing = {
            "prompts": [{"path": p.path, "start": p.start, "bars": p.bars, "tokens": len(p.ids)} for p in prompts],
            "skipped": skipped,
        }
        _write(Path(output_dir) / "prompts.json", listing)
    return prompts


def _write(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + f".partial-{os.getpid()}")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def load_tokenizer(folder: str | Path) -> MortmTokenizer:
    """The tokenizer of a policy's folder.

    Raises:
        RlmfError: there is none that can be read.
    """
    try:
        return MortmTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise RlmfError(f"cannot load a tokenizer from {folder}: {error}", "rlmf.model") from None


def train(
    recipe: Recipe,
    output_dir: str | Path,
    songs: ScoreStore | None = None,
    prompts: list[Prompt] | None = None,
    draw: Callable | None = None,
    callbacks: list | None = None,
):
    """Run a recipe and return the trainer; `output_dir/final` holds the result.

    Args:
        songs, prompts: to use instead of reading them. draw: `(score, path, highlight, title)` draws a picture.
        callbacks: transformers' callbacks to add.

    Raises:
        RlmfError: whatever is wrong, before anything starts.
    """
    require_trl()
    from accelerate import PartialState

    folder = Path(output_dir)
    if (folder / "final").exists():
        raise RlmfError(f"{folder} holds a finished run: give another --output_dir")
    if prompts is None and songs is None:
        _data_of(recipe)
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    args = recipe.arguments(folder)
    transformers.set_seed(args.seed)
    policy_name = recipe.model.policy or default_model("rlmf")
    source, origin = find_model(recipe.model.resume or policy_name), find_model(recipe.model.reference or policy_name)
    tokenizer = load_tokenizer(source)
    reward = build_reward(recipe.reward.terms, tokenizer)
    policy = load_policy(source, recipe.model.experts, recipe.model.attention)
    reference = load_policy(origin, recipe.model.experts, recipe.model.attention)
    for model in (policy, reference):
        model.set_grammar(tokenizer, args.response_length)
    critic = None
    if recipe.run.algorithm == "ppo":
        if recipe.model.resume:
            critic = load_critic(source, recipe.model.experts, recipe.model.attention)
        else:
            critic = make_critic(policy, recipe.model.critic_hidden or None, recipe.model.critic_layers)
    if prompts is None:
        if songs is None:
            with PartialState().main_process_first():  # one process writes the store (`args` has no world size yet)
                songs = read_songs(recipe, folder)
        prompts = make_prompts(recipe, songs, tokenizer, folder)
    if is_first_process():
        _write(folder / "recipe.json", recipe.stated())
    shaping = Shaping(recipe.reward.whiten, tuple(recipe.reward.clip) if recipe.reward.clip else None)
    baseline = None
    if recipe.reward.baseline:
        pairs = [p.ids for p in prompts], [p.answer for p in prompts]
        baseline = HumanBaseline(reward, *pairs, pad=tokenizer.pad_token_id, marker=tokenizer.vocabulary["<MGEN>"])
    adapter = RewardAdapter(reward, shaping, policy.config, baseline)
    peft_config = None
    if recipe.model.lora_rank:
        peft_config = _lora(recipe)
    if recipe.run.algorithm != "ppo":
        from .group import train_group

        return train_group(
            recipe, args, tokenizer, policy, reference, adapter, prompts, folder, draw, callbacks, peft_config
        )
    from .ppo import RUN_STATE, AdaptiveKL, MusicPPOTrainer, SampleWriter, UpdateLog, end_at_signal

    state = Path(source) / RUN_STATE
    if recipe.model.resume and state.is_file():
        before = json.loads(state.read_text(encoding="utf-8"))
        shaping.sums = torch.tensor(before["reward_sums"], dtype=torch.float64)
        if recipe.run.target_kl:
            args.kl_coef = before["kl_coef"]
    extra = [UpdateLog(folder), *(callbacks or [])]
    if recipe.run.sample_every:
        shown = prompts[: recipe.run.sample_count]
        place = folder / "samples"
        extra.append(
            SampleWriter(policy, tokenizer, shown, place, recipe.run.sample_every, args.response_length, draw)
        )
    trainer = MusicPPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=adapter,
        train_dataset=prompt_dataset(prompts),
        value_model=critic,
        critic_learning_rate=recipe.run.critic_learning_rate or None,
        adaptive_kl=AdaptiveKL(recipe.run.target_kl, recipe.run.kl_horizon) if recipe.run.target_kl else None,
        callbacks=extra,
        peft_config=peft_config,
    )
    if end_at_signal(trainer):
        trainer.save_final(folder / "final")
    return trainer


def _lora(recipe: Recipe):
    try:
        from peft import LoraConfig, TaskType
    except ImportError:
        raise RlmfError("adapters need PEFT: pip install 'mortm_hf[rlmf]'", "rlmf.model") from None
    targets = [name.strip() for name in recipe.model.lora_targets.split(",") if name.strip()]
    rank = recipe.model.lora_rank
    return LoraConfig(task_type=TaskType.CAUSAL_LM, r=rank, lora_alpha=2 * rank, target_modules=targets)


def main(words: list[str] | None = None) -> int:
    """Command line: a recipe and `--field value` words; exit code 2 and one line for what a user can mend.

    Args:
        words: by default those of this process.
    """

    def run(path: str, rest: list[str]):
        recipe = read_recipe(path, rest)
        return train(recipe, output_of(recipe))

    return command_line("rlmf", __doc__, run, words)
