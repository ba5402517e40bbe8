"""A finished run -> the folder that is shipped: `python -m mortm_hf.training.export RUN/final [RUN/final ...] FOLDER`.

Design decisions
- Weights are stored in bf16 (half the size; rounding a trained checkpoint costs nothing measurable, which the card's
  figures, taken from the rounded weights, include) while the configuration says `dtype: float32`, in which the model
  is to be run on CPUs.
- The folder is weights and JSON, with what reads its input (tokenizer, feature extractor) and the defaults of
  sampling. Code, names of classes and a card come with it where it is saved again or pushed (`push_folder`).
- Several checkpoints that came one from another are shipped as the mean of their weights.
- `size_limit` refuses a folder that would not fit the package instead of shipping it.

Knows: the models, their tokenizers and feature extractors. Must not know: data, recipes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from .._registration import class_of
from ..models.families import FAMILIES


# class of a model -> (the same as "module.Class", that of what reads a user's input for it)
MODELS = {
    name.partition(".")[2]: (name, next(iter(family.readers.values())))
    for family in FAMILIES.values()
    for name in family.models.values()
}
SAMPLING = {"do_sample": True, "temperature": 1.0, "top_p": 0.95, "top_k": 0}


def export(source: str | Path | Sequence[str | Path], target: str | Path, size_limit: int = 20_000_000) -> int:
    """Write the shipped form of a finished checkpoint: weights and JSON.

    Args:
        source: folder with fp32 weights (`final/` of a run), or several of one model, whose weights are averaged (all
            else is the first one's).
        target: folder to write, replaced if it is there.
        size_limit: bytes that all files together may take.

    Returns:
        Bytes written.

    Raises:
        ValueError: a model of another kind, weights that are not finite or do not fit each other, or a folder over
            `size_limit`.
    """
    source, *others = [Path(s) for s in ([source] if isinstance(source, (str, Path)) else source)]
    target = Path(target)
    named = json.loads((source / "config.json").read_text(encoding="utf-8")).get("architectures") or ["no model"]
    if named[0] not in MODELS:
        raise ValueError(f"{source} holds {named[0]}; what is exported is one of {', '.join(MODELS)}")
    kind, reader = map(class_of, MODELS[named[0]])
    model = kind.from_pretrained(source, dtype=torch.float32)
    _average(model, source, others)
    bad = [name for name, p in model.named_parameters() if not torch.isfinite(p).all()]
    if bad:
        raise ValueError(f"{source}: weights are not finite: {', '.join(bad[:3])}")
    if hasattr(model, "generation_config") and model.can_generate():
        model.config.use_cache = True  # the Trainer turns it off
        for name, value in SAMPLING.items():
            setattr(model.generation_config, name, value)
        model.generation_config._from_model_config = False  # it is ours now, not derived from the model's
    partial = target.with_name(target.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    model.to(torch.bfloat16).save_pretrained(partial)
    reader.from_pretrained(source).save_pretrained(partial)
    _keep_weights(partial)
    size = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
    if size > size_limit:
        raise ValueError(f"{partial} takes {size} bytes, more than {size_limit}: train a smaller model")
    if target.exists():
        shutil.rmtree(target)
    partial.rename(target)
    return size


def _keep_weights(folder: Path) -> None:
    """Leave weights and JSON, without what speaks of code."""
    for path in [*folder.glob("*.py"), folder / "README.md"]:
        path.unlink()
    for path in folder.glob("*config.json"):
        stated = json.loads(path.read_text(encoding="utf-8"))
        stated = {name: value for name, value in stated.items() if name not in ("auto_map", "custom_pipelines")}
        if path.name == "config.json":
            stated["dtype"] = "float32"
        path.write_text(json.dumps(stated, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@torch.no_grad()
def _average(model, source: Path, others: list[Path]) -> None:
    """Set the weights of a model to the mean of its own and those of `others`."""
    weights = dict(model.named_parameters())
    for other in others:
        found = dict(type(model).from_pretrained(other, dtype=torch.float32).named_parameters())
        if {n: p.shape for n, p in found.items()} != {n: p.shape for n, p in weights.items()}:
            raise ValueError(f"{other} is another model than {source}: only checkpoints of one model are averaged")
        for name, parameter in weights.items():
            parameter.add_(found[name])
    for parameter in weights.values():
        parameter.div_(1 + len(others))


def main(words: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="+", help="final/ of a run; of several the mean")
    parser.add_argument("target", help="folder to write")
    parser.add_argument("--size_limit", type=int, default=20_000_000, help="bytes that all files together may take")
    options = parser.parse_args(words)
    try:
        size = export(options.source, options.target, options.size_limit)
    except (ValueError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    print(f"{options.target}: {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
