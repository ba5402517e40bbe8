"""Control accuracy of a checkpoint over 200 samples of eight bars, and how often it breaks the grammar when free.

    python benchmarks/control.py --data PACK [--model FOLDER] [--samples 200] [--json FILE] [--cache DIR]

Requests are taken from the test windows (see `mortm_hf.evaluation.control`): key, meter, bars, instruments, density,
chords. Beside the samples: the same without the grammar, chance, and the human music the requests were taken from.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mortm_hf import MORTM_SMALL  # noqa: E402


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path, help="folder of the training pack")
    parser.add_argument("--model", default=MORTM_SMALL, help="default: the bundled mortm-small")
    parser.add_argument("--split", default="test")
    parser.add_argument("--recipe", default="starter")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--temperature", type=float, default=None, help="default: the model's")
    parser.add_argument("--top-p", type=float, default=None, help="default: the model's")
    parser.add_argument("--min-p", type=float, default=None, help="default: the model's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", default="", help="keeps songs and answers: a run that was cut off goes on")
    parser.add_argument("--json", default="", help="write all figures here")
    options = parser.parse_args(words)

    import torch

    from mortm_hf.app.eval import choose_sampling, load_model
    from mortm_hf.evaluation.eval_data import open_data
    from mortm_hf.evaluation.model_answers import fingerprint
    from mortm_hf.evaluation.report import markdown
    from mortm_hf.evaluation.suite import Evaluation, Settings

    torch.set_num_threads(options.threads)
    cache = Path(options.cache) if options.cache else None
    model, tokenizer = load_model(Path(options.model), "cpu")
    identity = fingerprint(options.model)
    data = open_data(options.data, options.split, options.recipe, cache)
    settings = Settings(
        samples=options.samples,
        batch=options.batch,
        seed=options.seed,
        sampling=choose_sampling(model.generation_config, options),
    )
    suite = Evaluation(model, tokenizer, data, settings, identity, cache, sys.stderr.isatty())
    about = {"name": Path(options.model).name, "checkpoint": identity, "split": options.split, "seed": options.seed}
    result = {"about": about | {"sampling": str(settings.sampling)}, **suite.run(("grammar", "control"))}
    print(markdown(result))
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
