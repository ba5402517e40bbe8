"""Checkpoints to the Hub: safetensors, JSON, code and the card go up, nothing else.

Design decisions
- An allow-list, not a list of what to leave out: `transformers.Trainer` pushes its output folder as it stands, with
  `training_args.bin`, which is a pickle, and whatever else lies there. A pickle runs code where it is loaded.
- One folder is one commit, the card included, so that no revision is half a checkpoint.
- A folder of weights and JSON only, as the package ships them, goes up with all code and the names of its classes:
  what is on the Hub works where the package is missing.
- A card that its author wrote stays; what it lacks (library, task, tags, `base_model`, licence) is added to its head.
  One that `save_pretrained` wrote gives way to the repository's.

Knows: files, the Hub's client, transformers' Trainer, the table of families. Must not know: models, music.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from transformers.trainer_utils import HubStrategy

from ..models import families
from ..models.errors_mortm import TrainingError


SHIPPED = ("*.safetensors", "*.json", "*.py", "README.md", "LICENSE*")
# of one run, and with paths of the machine it ran on
_PRIVATE = ("trainer_state.json",)
# The Hub knows the tasks of transformers only, not those that a folder brings along.
_HUB_TASKS = {
    "ForCausalLM": "text-generation",
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
}
_WEIGHTS = ("model*.safetensors", "adapter_model*.safetensors", "diffusion_pytorch_model*.safetensors")


def shipped_files(folder: str | os.PathLike) -> list[Path]:
    """The files of a checkpoint folder that may go up, sorted; sub-folders (further checkpoints, logs) stay.

    Raises:
        TrainingError (`training.hub`): no folder, no configuration, no safetensors, or JSON that cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise TrainingError(
            f"{folder} is no folder: give one that save_pretrained or the Trainer wrote", "training.hub"
        )
    found = sorted(path for path in folder.iterdir() if path.is_file() and path.name not in _PRIVATE)
    found = [path for path in found if any(fnmatchcase(path.name, pattern) for pattern in SHIPPED)]
    names = {path.name for path in found}
    if not names & {"config.json", "adapter_config.json"}:
        raise TrainingError(f"{folder} holds no config.json: give a folder that save_pretrained wrote", "training.hub")
    if not any(fnmatchcase(name, pattern) for name in names for pattern in _WEIGHTS):
        raise TrainingError(
            f"{folder} holds no weights in safetensors: load the model and save it again with save_pretrained",
            "training.hub",
        )
    for path in found:
        if path.suffix == ".json":
            try:
                json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise TrainingError(f"{path} is no JSON ({error}): save the folder again", "training.hub") from None
    return found


def _with_code(files: Sequence[Path]) -> dict[str, Path | bytes]:
    """File in the repository -> what it holds; a folder that states no classes gets their names and the code."""
    found: dict[str, Path | bytes] = {path.name: path for path in files}
    stated = {
        path.name: json.loads(path.read_text(encoding="utf-8")) for path in files if path.name.endswith("config.json")
    }
    config = stated.get("config.json", {})
    family = families.FAMILIES.get(config.get("model_type"))
    if family is None or "auto_map" in config:
        return found
    names = {
        "config.json": {
            "auto_map": families.auto_map(config["model_type"]),
            "custom_pipelines": families.custom_pipelines(config["model_type"]),
        },
        "preprocessor_config.json": {"auto_map": family.readers},
        # transformers writes a pair, of which the second is a tokenizer of another kind
        "tokenizer_config.json": {"auto_map": {auto: [name, None] for auto, name in family.readers.items()}},
    }
    for name in names.keys() & stated.keys():
        found[name] = json.dumps(stated[name] | names[name], indent=2).encode("utf-8")
    code = Path(families.__file__).parent.glob("*.py")
    return found | {path.name: path for path in code if path.name != "__init__.py"}


def _card(folder: Path, repo_id: str, token, tags: Sequence[str], base_model, license: str | None) -> str:
    """The folder's card, else the repository's, else a short one; with tags, `base_model` and licence in its head."""
    from huggingface_hub import ModelCard
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    own, settings = folder / "README.md", folder / "config.json"
    config = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    kind = (config.get("architectures") or [""])[0]
    text = own.read_text(encoding="utf-8") if own.is_file() else families.model_card(config.get("model_type"), kind)
    card = None
    if families.CARD_MARK in text:
        try:
            card = ModelCard.load(repo_id, token=token)
        except (EntryNotFoundError, RepositoryNotFoundError):
            text = text.replace("FOLDER", json.dumps(repo_id))
    card = card or ModelCard(text)
    data = card.data
    data.library_name = data.library_name or "transformers"
    if data.pipeline_tag is None:
        data.pipeline_tag = next((tag for ending, tag in _HUB_TASKS.items() if kind.endswith(ending)), None)
    wanted = [*(data.tags or ()), *tags, *([config["model_type"]] if "model_type" in config else ()), "symbolic-music"]
    data.tags = list(dict.fromkeys(wanted))
    data.base_model = base_model or data.base_model
    data.license = license or data.license
    return str(card)


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    revision: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    base_model: str | Sequence[str] | None = None,
    tags: Sequence[str] = (),
    license: str | None = None,
):
    """Push a checkpoint folder in one commit; `training_args.bin`, optimizer states and logs stay where they are.

    Args:
        folder: what `save_pretrained`, `mortm train` or the Trainer (`checkpoint-N`) wrote, or a bundled checkpoint.
        repo_id: "name/repository"; made where there is none.
        revision: a branch, made where there is none.
        private: whether a repository that is made is private.
        token: of the Hub; by default the one that is logged in.
        commit_message: "Upload FOLDER" by default.
        base_model: repositories it was made from, for the head of the model card.
        tags: more tags for it.
        license: for it.

    Returns:
        `huggingface_hub.CommitInfo`; its `oid` pins this state (`from_pretrained(..., revision=oid)`).

    Raises:
        TrainingError (`training.hub`): the folder is no checkpoint. huggingface_hub's errors: the push itself.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    folder = Path(folder)
    files = [path for path in shipped_files(folder) if path.name != "README.md"]
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    card = _card(folder, repo_id, token, tags, base_model, license)
    operations = [CommitOperationAdd(name, content) for name, content in _with_code(files).items()]
    operations.append(CommitOperationAdd("README.md", card.encode("utf-8")))
    message = commit_message or f"Upload {folder.name}"
    return api.create_commit(repo_id, operations, commit_message=message, revision=revision)


class SafePush:
    """Mixin before `transformers.Trainer`: what `push_to_hub` and pushes while training send is `shipped_files`."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.args.push_to_hub and self.args.hub_strategy not in (HubStrategy.END, HubStrategy.EVERY_SAVE):
            raise TrainingError(
                f"hub_strategy={self.args.hub_strategy.value!r} would push optimizer states, which are pickles: use "
                "'every_save' or 'end'",
                "training.hub",
            )

    def _push(self, folder: str, message: str, token=None, revision=None, private=None, tags=(), base_model=None):
        return push_folder(
            folder,
            self.hub_model_id,
            revision=revision or self.args.hub_revision,
            private=self.args.hub_private_repo if private is None else private,
            token=token or self.args.hub_token,
            commit_message=message,
            tags=[*(getattr(self.model, "model_tags", None) or ()), *([tags] if isinstance(tags, str) else tags)],
            base_model=base_model,
        )

    def push_to_hub(
        self, commit_message="End of training", blocking=True, token=None, revision=None, private=None, **card
    ):
        """Save the model to the output folder and push what of it may go up (see `push_folder`).

        Args:
            blocking: always waited for; the argument is transformers'. card: `tags`, and `finetuned_from` for
                `base_model`; the rest of transformers' card arguments is left to the card's author.
        """
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        tags = card.get("tags") or ()
        place = dict(token=token, revision=revision, private=private)
        return self._push(
            self.args.output_dir, commit_message, **place, tags=tags, base_model=card.get("finetuned_from")
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """As transformers' (called after a checkpoint was written), from the checkpoint itself."""
        if self.is_world_process_zero() and self.args.hub_strategy != HubStrategy.END:
            self._push(checkpoint_folder, f"Training in progress, step {self.state.global_step}")


__all__ = ["SHIPPED", "SafePush", "push_folder", "shipped_files"]
