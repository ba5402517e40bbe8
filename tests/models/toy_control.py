"""A control that somebody adds: how high each track lies. Run as a program by `test_token_controls.py`.

Everything that the suite does with a control is done with it here, and nothing but this row knows it.
"""

import io
import json
import sys
from contextlib import redirect_stdout, suppress

import numpy as np

from mortm_hf.models.token_controls import Control, Figure, register, track_pairs


HEIGHTS = ["low", "middle", "high"]


def heights(music) -> list[int]:
    means = [music.pitch[music.track == t].mean() for t in range(music.n_tracks)]
    return [int(np.searchsorted([52, 68], mean)) for mean in means]


def score(asked, instruments, answer) -> dict:
    pairs = [] if answer is None else track_pairs(asked, instruments, answer, heights(answer))
    return {"height": (sum(a == b for a, b in pairs), len(instruments))}


register(
    Control(
        name="height",
        kind="HEIGHT",
        form=("<HEIGHT_", ">"),
        names=HEIGHTS,
        level="track",
        measure=lambda d: None if d.music is None else tuple(heights(d.music)),
        help="where each instrument plays",
        from_answer=True,
        figures={"height": Figure("height of the track", share=False)},
        score=score,
    )
)


def main() -> None:
    import torch

    from mortm_hf import MortmConfig, MortmForCausalLM, MortmTokenizer
    from mortm_hf.app.cli import main as command
    from mortm_hf.data.examples import ExampleRecipe, ExampleSource
    from mortm_hf.data.masking import MaskingRecipe, choose_tokens
    from mortm_hf.evaluation.control import FIGURES, control_report, make_requests
    from mortm_hf.evaluation.fixed_windows import encode_windows, fixed_windows
    from mortm_hf.models.pipeline_mortm import MidiGenerationPipeline
    from mortm_hf.models.token_grammar import check
    from mortm_hf.models.token_vocabulary import CONTROL_KINDS
    from tests.sample_songs import store

    tokenizer, found = MortmTokenizer(), {}
    vocabulary, kind = tokenizer.vocabulary, CONTROL_KINDS["height"]
    found["new_tokens"] = vocabulary.tokens[-3:]

    # a request and back
    ids = tokenizer.encode_prompt(tokenizer.prompt(instruments=["flute", "bass"], bars=2, height=["high", "low"]))
    check(vocabulary, ids)
    found["prompt"] = tokenizer.decode(ids)
    back = tokenizer.decode_prompt(ids)
    found["back"] = [list(back.word("height")), tokenizer.encode_prompt(back) == ids]

    # music from a request, by the pipeline and on the command line
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_local_experts=2)
    model = MortmForCausalLM(MortmConfig(vocab_size=len(tokenizer), **sizes)).eval()
    pipe = MidiGenerationPipeline(model=model, tokenizer=tokenizer, task="midi-generation")
    out = pipe(None, instruments=["flute", "bass"], bars=2, height=["high", "low"], seed=1)
    found["generated"] = [tokenizer.decode(out[0]["token_ids"]["prompt"]), out[0]["report"]["complete"]]
    with redirect_stdout(io.StringIO()) as text, suppress(SystemExit):
        command(["generate", "--help"])
    found["help"] = "--height" in text.getvalue() and "where each instrument plays" in text.getvalue()

    # a whole song: what is measured stands in its header
    songs = store(6, 34)
    song = songs.songs[0].score
    header = vocabulary.kind[tokenizer.encode_midi(song)]
    found["measured"] = [int((header == kind).sum()), song.n_tracks]

    # training examples: written, and left out as often as the recipe says
    source = ExampleSource(songs, vocabulary, ExampleRecipe(header_dropout=0.25), packs=2)
    drawn = [source.draw(np.random.default_rng(i), 1024) for i in range(80)]
    stated = [
        (vocabulary.kind[d.ids[: np.argmax(d.target)]] == kind).any() for d in drawn if d and d.task == "continue"
    ]
    found["examples"] = float(np.mean(stated))

    # masking may hide its tokens
    ids, recipe = np.array(tokenizer.encode_midi(song)), MaskingRecipe(ways={"token": 1.0}, rate=0.9)
    hidden, _, _ = choose_tokens(vocabulary, ids, np.array([0]), recipe, np.random.default_rng(0))
    found["masked"] = bool(hidden[vocabulary.kind[ids] == kind].any())

    # fixed test windows leave it out, the table of controls asks for it and marks it
    windows = fixed_windows(songs)
    encoded, _ = encode_windows(vocabulary, songs, windows, 4096)
    found["windows"] = bool(any((vocabulary.kind[e.ids] == kind).any() for e in encoded))
    requests = make_requests(tokenizer, songs, windows, 6, 4096)
    asked = [(vocabulary.kind[r.ask.ids] == kind).sum() == len(r.asked.instruments) for r in requests]
    found["asked"] = bool(all(asked))
    report = control_report(requests, [r.human for r in requests])
    found["marks"] = [FIGURES["height"].label, report["height"]["value"], report["height"]["n"] > 0]
    json.dump(found, sys.stdout)


main()
