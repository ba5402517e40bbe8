"""V_MORTM on rendered songs of the test split: error of the next patch, and of free continuations.

    python benchmarks/audio.py --data PACK [--model FOLDER] [--minutes 10] [--json FILE] [--cache DIR]

Pieces of 16 bars of seeded test songs are rendered and cut into windows as in training. Errors are squared, in
standard deviations of the training frames, and means over frames and bands; 95 % over songs. Beside the model: the
last patch again, the window's own mean frame so far, and the mean frame of all these test pieces (which nobody could
know). "Free" continues 128 given frames by 128: the error grows with the horizon, as a regression's does.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

WINDOW, GIVEN = 512, 128


def windows_of(sound, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """`[n, frames, bins]` whole windows, one after another in each piece, and `[n]` their pieces."""
    cut, owner = [], []
    for piece in range(len(sound)):
        whole = np.asarray(sound[piece], dtype=np.float32)
        count = len(whole) // frames
        cut += np.split(whole[: count * frames], count) if count else []
        owner += [piece] * count
    return np.stack(cut), np.array(owner)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of the training pack")
    parser.add_argument("--model", default="", help="checkpoint folder; by default the bundled one")
    parser.add_argument("--recipe", default="vmortm_small", help="names the corpora")
    parser.add_argument("--minutes", type=float, default=10.0, help="music that is rendered")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", default="build/audio", help="folder for prepared stores and rendered frames")
    parser.add_argument("--json", default="", help="write all figures here")
    options = parser.parse_args(words)

    import torch

    import mortm_hf
    from mortm_hf.data import build_store
    from mortm_hf.data.mel_frames import build_sound
    from mortm_hf.evaluation.intervals import mean
    from mortm_hf.models.feature_extraction_vmortm import VMortmFeatureExtractor
    from mortm_hf.models.modeling_vmortm import VMortmForSpectrogramGeneration
    from mortm_hf.training.tasks import read_data

    torch.set_num_threads(options.threads)
    folder = options.model or mortm_hf.VMORTM
    model = VMortmForSpectrogramGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    extractor = VMortmFeatureExtractor.from_pretrained(folder)
    recipe = read_data(options.recipe, ["--output_dir", options.cache])
    store = build_store(options.data, recipe.selection(), "test", options.cache)
    sound = build_sound(store, extractor, options.minutes, options.cache, seed=options.seed)
    features, owner = windows_of(sound, WINDOW)
    songs = np.array([sound.pieces[piece].path for piece in owner])
    size, std = model.config.patch_size, model.config.mel_std
    everyone = features.mean((0, 1))
    errors: dict[str, np.ndarray] = {}

    def error(guess, truth) -> np.ndarray:
        return np.square((guess - truth) / std).mean((1, 2))

    found = []
    with torch.inference_mode():
        for at in range(0, len(features), 8):
            found.append(model(input_features=torch.from_numpy(features[at : at + 8])).predictions.numpy())
    truth = features[:, size:]
    errors["model"] = error(np.concatenate(found)[:, :-size], truth)
    errors["last patch again"] = error(features[:, :-size], truth)
    so_far = features.cumsum(1)[:, size - 1 : -1 : size] / np.arange(size, WINDOW, size)[:, None]
    errors["mean frame so far"] = error(np.repeat(so_far, size, axis=1), truth)
    errors["mean frame of all pieces"] = error(everyone, truth)
    result: dict = {
        "windows": len(features),
        "songs": len(set(songs.tolist())),
        "seed": options.seed,
        "next patch": {},
    }
    print(f"{len(features)} windows of {WINDOW} frames, {result['songs']} songs, seed {options.seed}")
    print("\n| next patch | error | minus the last patch again |\n|---|---|---|")
    for name, values in errors.items():
        entry = mean(values, songs)
        entry["difference"] = mean(values - errors["last patch again"], songs)
        result["next patch"][name] = entry
        low, high = entry["difference"]["low"], entry["difference"]["high"]
        print(
            f"| {name} | {entry['value']:.4f} [{entry['low']:.4f}, {entry['high']:.4f}] | "
            f"{entry['difference']['value']:+.4f} [{low:+.4f}, {high:+.4f}] |"
        )

    given, target = torch.from_numpy(features[:, :GIVEN]), features[:, GIVEN : 2 * GIVEN]
    made = np.concatenate(
        [
            model.generate(given[i : i + 8], max_new_frames=GIVEN).features[:, -GIVEN:].numpy()
            for i in range(0, len(given), 8)
        ]
    )
    guesses = {
        "model": made,
        "last patch again": np.tile(features[:, GIVEN - size : GIVEN], (1, GIVEN // size, 1)),
        "mean frame so far": features[:, :GIVEN].mean(1, keepdims=True),
        "mean frame of all pieces": everyone,
    }
    result["free"] = {}
    edges = [0, 8, 32, GIVEN]
    heads = " | ".join(f"frames {a} to {b - 1}" for a, b in zip(edges, edges[1:]))
    print(f"\n| free continuation | {heads} |\n|---|" + "---|" * (len(edges) - 1))
    for name, guess in guesses.items():
        guess = np.broadcast_to(guess, target.shape)
        row = [mean(error(guess[:, a:b], target[:, a:b]), songs) for a, b in zip(edges, edges[1:])]
        result["free"][name] = row
        print(f"| {name} | " + " | ".join(f"{e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}]" for e in row) + " |")
    wave = extractor.to_audio(made[0])
    result["rms"] = float(np.sqrt(np.mean(np.square(np.asarray(wave, dtype=np.float64)))))
    print(f"\nRMS of the first continuation as sound: {result['rms']:.4f}")
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
