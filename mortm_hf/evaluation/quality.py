"""Human bars against machine bars: `python -m mortm_hf.evaluation.quality --data PACK --cache FOLDER`.

Design decisions
- Every machine window answers the same question as a human one: eight bars after four given bars of a song, for the
  same tracks in the same meters. Human, sampled and corrupted music then pass through one function (`field_of`):
  velocity, tempo, names and header go, notes end at the closing bar line. Only the music is left to judge. A judge
  of fewer bars reads parts of these windows.
- Length gives nothing away: a sample that is much longer than its human twin is left out (`LONGEST`), as are the last
  few of a batch to end, for which all others would have to wait (`ENOUGH`).
- Machines: the starter at several temperatures, a model of random weights under the same grammar, and human bars
  corrupted in four ways. Windows of train songs train, windows of test songs test.
- Sampling is the long part. It is done in batches, each written as a file of its own, named after the weights it came
  from: a stopped command goes on where it stopped, new weights sample anew, and `--minutes` ends it early. The set is
  made of the batches that are there, and the counts are printed.

Knows: stores, the prompt builder, `generate`. Must not know: classifiers, metrics.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import LogitsProcessorList, StoppingCriteriaList

from ..bundled import find_model
from ..data.corruptions import CORRUPTIONS, corrupt, tidy
from ..data.labelled_windows import LabelledData, LabelledExample
from ..data.manifest import CorpusFilter, Selection
from ..data.open import build_store
from ..data.score_store import ScoreStore
from ..data.whole_files import replace_file
from ..models.configuration_mortm import MortmConfig
from ..models.errors_mortm import PromptError
from ..models.generation_cpu import FastDecoder, refusal
from ..models.generation_mortm import MetricGrammarLogitsProcessor
from ..models.generation_sampling import SeededChoice, sampling_filters
from ..models.inputs_bertm import bare_segment, pad_rows
from ..models.modeling_mortm import MortmForCausalLM
from ..models.music_names import GENRES
from ..models.music_score import MetricScore
from ..models.prompt_building import training_example
from ..models.token_codec import parse_segment
from ..models.token_headers import FROM_ANSWER
from ..models.token_vocabulary import MetricVocabulary
from ..models.tokenization_mortm import MortmTokenizer


NAMES = ("human", "machine")
TEMPERATURES = (0.8, 1.0, 1.2)
TOP_P = 0.95
GIVEN, ASKED = 4, 8  # bars of a prompt, and of the answer
TRACKS, PROMPT, ANSWER = 4, 1024, 640  # most tracks, most tokens of prompt and answer
LONGEST, SPARE = 1.5, 16  # an answer may take so many times the tokens of the human's, and so many more
ENOUGH = 0.9  # a batch is done when this share of it is
ROUND = 2304  # prompts that are put into batches together: a larger set begins with the batches of a smaller one
SPLITS = ("train", "validation", "test")
HUMAN, RANDOM = "human", "random weights"
SELECTION = Selection(
    {
        "pop909": CorpusFilter(("aligned",)),
        "lieder": CorpusFilter(),
        "gamemusic": CorpusFilter(licence="BSD"),
        "groove": CorpusFilter(),
        "chorales": CorpusFilter(),
        "openewld": CorpusFilter(),
    }
)


@dataclass(frozen=True)
class Sizes:
    """How many windows of one split.

    Attributes:
        human: of composers.
        starter: of the starter, at all temperatures together.
        random: of random weights.
        corrupted: of each kind of corruption.
    """

    human: int
    starter: int
    random: int
    corrupted: int


SIZES = {
    "train": Sizes(4800, 4608, 288, 1200),
    "validation": Sizes(150, 96, 32, 60),
    "test": Sizes(400, 288, 96, 300),
}


@dataclass(frozen=True)
class Task:
    """One window: its prompt, and what a human wrote there.

    Attributes:
        prompt: `[m]` int32 up to and with `<MGEN>`.
        answer: tokens that the human field takes behind it.
        human: the eight bars, tidied.
        song: name of the song.
        cluster: of the song.
        split: of the song.
    """

    prompt: np.ndarray
    answer: int
    human: MetricScore
    song: str
    cluster: str
    split: str


def field_of(vocabulary: MetricVocabulary, score: MetricScore) -> np.ndarray:
    """The one form in which all bars are judged: `<EOS> <MGEN> tracks <TE>` of the tidied score, int32.

    Args:
        vocabulary: the token table.
        score: the bars.
    """
    return bare_segment(vocabulary, tidy(score))


def choose_tasks(vocabulary: MetricVocabulary, store: ScoreStore, count: int, seed: int = 0) -> list[Task]:
    """Windows of a store, in a seeded order, the corpora by turns as long as they last.

    Windows begin every eight bars from bar 4 on and have bars of one length, at most `TRACKS` tracks, and prompts and
    answers of bounded length. The prompt states everything but density.

    Args:
        vocabulary: the token table.
        store: songs of one split.
        count: how many windows.
        seed: of the order.
    """
    rng, n_bars = np.random.default_rng(seed), store.n_bars()
    queues = []
    for rows in store.corpora().values():
        places = [(int(i), at) for i in rows for at in range(GIVEN, n_bars[i] - ASKED + 1, 8)]
        queues.append([places[i] for i in rng.permutation(len(places))])
    found: list[Task] = []
    while len(found) < count and any(queues):
        for queue in queues:
            task = None
            while queue and task is None:
                task = _task(vocabulary, store[queue[0][0]], queue.pop(0)[1])
            if task is not None and len(found) < count:
                found.append(task)
    return found


def _task(vocabulary: MetricVocabulary, song, start: int) -> Task | None:
    window = song.score.window(start, start + ASKED)
    tracks = window.sounding_tracks()
    length = window.bars.length
    if not 0 < len(tracks) <= TRACKS or (length != length[0]).any() or window.bars.irregular.any():
        return None
    genres = (GENRES.index(song.genre),) if song.genre else ()
    try:
        ids, answer = training_example(
            vocabulary,
            song.score,
            start,
            ASKED,
            past_bars=GIVEN,
            targets=tracks,
            genres=genres,
            omit=FROM_ANSWER,
        )
    except PromptError:
        return None
    if answer > PROMPT or len(ids) - answer > ANSWER:
        return None
    human = tidy(window.take_tracks(tracks))
    return Task(ids[:answer].copy(), len(ids) - answer, human, song.song_id, song.cluster, song.split)


# ---------------------------------------------------------------------------------------------------------------------
# Machines


def corrupted(tasks: Sequence[Task], count: int, seed: int = 0) -> Iterator[tuple[str, Task, MetricScore]]:
    """Corrupted windows of each kind, taken from the tasks in order.

    Args:
        tasks: the windows.
        count: windows of each kind.
        seed: of the corruptions.

    Yields:
        (kind, task, score).
    """
    for number, kind in enumerate(CORRUPTIONS):
        made = 0
        for place, task in enumerate(tasks):
            if made == count:
                break
            rng = np.random.default_rng([seed, SPLITS.index(task.split), number, place])
            broken = corrupt(kind, task.human, rng)
            if broken is not None:
                made += 1
                yield kind, task, broken


def sample_fields(
    model, tokenizer, tasks: Sequence[Task], temperature: float, top_p: float = TOP_P, seed: int = 0
) -> list[MetricScore | None]:
    """Grammatical answers to the prompts, one batch.

    Args:
        model: `MortmForCausalLM`, or a `FastDecoder` of one.
        tokenizer: of the model.
        tasks: the windows.
        temperature: of the drawing.
        top_p: of the drawing.
        seed: of the batch; row `i` draws from (seed, i).

    Returns:
        A tidied score each; `None` where the answer is not what was asked for, or too long.
    """
    ids, mask = pad_rows([t.prompt for t in tasks], tokenizer.pad_token_id, side="left")
    width = ids.shape[1]
    longest = np.array([int(LONGEST * t.answer) + SPARE for t in tasks])
    length = min(model.config.max_position_embeddings, width + int(longest.max()))
    stop = StoppingCriteriaList([_Enough(width, longest, tokenizer.eos_token_id)])
    processors = [
        # what does not end by itself is left out, so no answer is made to end in time
        MetricGrammarLogitsProcessor(tokenizer, None, max_length=model.config.max_position_embeddings),
        *sampling_filters({"temperature": temperature, "top_p": top_p}),
        SeededChoice([seed * 1000 + i for i in range(len(tasks))], 0, width),
    ]
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    device, options = "cpu", {}  # of a fast decoder
    if isinstance(model, torch.nn.Module):
        device = next(model.parameters()).device
        options = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0}  # the processors sample
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            logits_processor=LogitsProcessorList(processors),
            stopping_criteria=stop,
            max_new_tokens=length - width,
            **options,
            **ends,
        ).cpu()
    return [answer_of(tokenizer, row[width:], task) for row, task in zip(out.numpy(), tasks)]


class _Enough:
    """Stopping criterion: a row stops when it is too long, all stop when `ENOUGH` of the rows have.

    Args:
        width: tokens of the prompts.
        longest: `[rows]` most tokens of each answer.
        end: id of the end token.
    """

    def __init__(self, width: int, longest: np.ndarray, end: int):
        self.width, self.longest, self.end = width, torch.from_numpy(longest), end

    def __call__(self, input_ids, scores, **_):
        answers = input_ids[:, self.width :]
        done = (answers == self.end).any(1) | (answers.shape[1] >= self.longest.to(answers.device))
        return done | (done.sum() >= ENOUGH * len(done))


def answer_of(tokenizer, ids: np.ndarray, task: Task) -> MetricScore | None:
    """A generated field as a tidied score on the task's bars and tracks; `None` where it is not what was asked for.

    Args:
        tokenizer: whose table the ids are of.
        ids: `[n]` behind `<MGEN>`.
        task: what was asked.
    """
    if tokenizer.eos_token_id not in ids:
        return None
    prompt = np.concatenate([task.prompt, ids[ids != tokenizer.pad_token_id]])
    score = parse_segment(tokenizer.vocabulary, prompt).generated
    asked = task.human
    if score is None or not np.array_equal(score.programs, asked.programs):
        return None
    if not np.array_equal(score.bars.length, asked.bars.length) or len(score.sounding_tracks()) < asked.n_tracks:
        return None
    return tidy(score)


def fastest(model):
    """A `FastDecoder` of a model where it can have one (fp32 on a CPU), else the model."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    return FastDecoder(model) if on_cpu and refusal(model) is None else model


def random_model(vocab_size: int, seed: int = 0):
    """A tiny model of random weights: every grammatical token about equally likely.

    Args:
        vocab_size: of the token table.
        seed: of the weights.
    """
    config = MortmConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
        num_local_experts=2,
        num_experts_per_tok=1,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return MortmForCausalLM(config).eval()


@dataclass(frozen=True)
class Batch:
    """Windows of one split that are sampled together, by one model at one temperature.

    Attributes:
        split: of the windows.
        kind: name of the machine.
        temperature: of the drawing.
        tasks: places of the windows in the list of their split.
        seed: number of the batch.
    """

    split: str
    kind: str
    temperature: float
    tasks: tuple[int, ...]
    seed: int

    def file(self, weights: str, seed: int) -> str:
        """Name of the file of its samples.

        Args:
            weights: short name of the model's weights.
            seed: of the set.
        """
        asked = [GIVEN, ASKED, TRACKS, PROMPT, ANSWER]
        content = json.dumps([self.split, self.kind, self.temperature, self.tasks, self.seed, asked, weights, seed])
        return f"{self.split}-{self.kind.replace(' ', '_')}-{hashlib.sha256(content.encode()).hexdigest()[:12]}.npz"


def plan_batches(
    tasks: dict[str, list[Task]], sizes: dict[str, Sizes], size: int = 32, rounds: int = 1
) -> list[Batch]:
    """All sampling, test first, temperatures by turns, so that an early end leaves a fair part.

    Prompts of one batch have answers of about one length: a batch lasts as long as its longest. In each further round
    the prompts of the train split are answered again, at the next temperature.

    Args:
        tasks: windows of each split.
        sizes: how many of each split.
        size: windows of a batch.
        rounds: answers to each prompt of a train song.
    """
    batches: list[tuple[int, Batch]] = []
    for order, split in enumerate(("test", "validation", "train")):
        given, want = tasks[split], sizes[split]
        jobs = [(RANDOM, 1.0, list(range(len(given)))[: want.random])]
        prompts = list(range(len(given)))[: want.starter]
        for again in range(rounds if split == "train" else 1):
            for at in range(0, len(prompts), ROUND):
                for turn, temperature in enumerate(TEMPERATURES):
                    places = prompts[at : at + ROUND][(turn + again) % len(TEMPERATURES) :: len(TEMPERATURES)]
                    jobs.append((f"starter T={temperature}", temperature, places))
        for job, (kind, temperature, places) in enumerate(jobs):
            places = sorted(places, key=lambda i: given[i].answer)
            parts = [tuple(places[i : i + size]) for i in range(0, len(places), size)]
            for rank, number in enumerate(np.random.default_rng(0).permutation(len(parts))):
                turn = (job - 1) // len(TEMPERATURES)  # of the prompts, ROUND by ROUND
                first = -1 if kind == RANDOM else order * 10000 + turn * 1000 + rank
                batches.append((first, Batch(split, kind, temperature, parts[number], len(batches))))
    return [batch for _, batch in sorted(batches, key=lambda pair: pair[0])]


def weights_name(folder: str | Path) -> str:
    """Short name of a checkpoint's weights (SHA-256 of the file).

    Raises:
        FileNotFoundError: no `model.safetensors` in the folder.
    """
    path = Path(folder) / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"no model.safetensors in {folder}: give the folder of a MORTM checkpoint with --model"
        )
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


# ---------------------------------------------------------------------------------------------------------------------
# The set


def make(
    data: str | Path,
    cache: str | Path,
    model: str | Path = "mortm-starter",
    sizes: dict[str, Sizes] | None = None,
    batch: int = 96,
    seed: int = 0,
    minutes: float = 0.0,
    without_starter: bool = False,
    rounds: int = 1,
    part: tuple[int, int] = (0, 1),
    device: str = "cpu",
) -> LabelledData:
    """Make (or go on making) the quality set and write `cache/quality.npz`.

    Args:
        data: folder of the training pack.
        cache: folder for stores, batches and the set.
        model: checkpoint that is sampled, a folder or the name of a bundled one.
        sizes: windows of each split.
        batch: windows that are sampled together.
        seed: of the whole set.
        minutes: stop sampling after this long (0: when all is done).
        without_starter: only what needs no trained checkpoint.
        rounds: answers of the checkpoint to each prompt of a train song, up to one a temperature.
        part: (k, n) samples every n-th batch from the k-th on, for n processes side by side; the set is made of all
            batches that are there when this one is done.
        device: where the checkpoint is sampled; on "cuda" in bf16 (its batches have the same names: a set may hold
            some of either).

    Raises:
        FileNotFoundError: no pack or no checkpoint there.
        ValueError: a part that is none, more rounds than temperatures, or a device that is not there.
    """
    if not 0 <= part[0] < part[1]:
        raise ValueError(f"part {part[0]}/{part[1]}: of N parts there are 0/N to {part[1] - 1}/N")
    if not 1 <= rounds <= len(TEMPERATURES):
        raise ValueError(f"rounds is 1 to {len(TEMPERATURES)}, one a temperature, not {rounds}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: torch finds no GPU here; leave --device out")

    sizes = sizes or SIZES
    cache, model = Path(cache), find_model(model)
    tokenizer = MortmTokenizer.from_pretrained(model)
    vocabulary = tokenizer.vocabulary
    weights = weights_name(model)
    stores = {split: build_store(data, SELECTION, split, cache) for split in SPLITS}
    tasks = {split: choose_tasks(vocabulary, stores[split], size.human, seed) for split, size in sizes.items()}
    samples = cache / "quality"
    samples.mkdir(parents=True, exist_ok=True)
    batches = plan_batches(tasks, sizes, batch, rounds)
    if without_starter:
        batches = [b for b in batches if b.kind == RANDOM]
    files = [samples / one.file("random" if one.kind == RANDOM else weights, seed) for one in batches]
    rows = [[tasks[one.split][i] for i in one.tasks] for one in batches]
    trained = untrained = None
    until = time.monotonic() + 60 * minutes if minutes else float("inf")
    first, step = part
    mine = range(first, len(batches), step)
    for number in tqdm(mine, desc="sampling", unit="batch", dynamic_ncols=True):
        one, path = batches[number], files[number]
        if not path.is_file() and time.monotonic() < until:
            if one.kind == RANDOM:
                sampled = untrained = untrained or fastest(random_model(len(vocabulary), seed))
            else:
                if trained is None:
                    dtype = "float32" if device == "cpu" else "bfloat16"
                    trained = fastest(MortmForCausalLM.from_pretrained(model, dtype=dtype).eval().to(device))
                sampled = trained
            scores = sample_fields(sampled, tokenizer, rows[number], one.temperature, seed=seed * 1000003 + one.seed)
            _write_fields(path, [None if s is None else field_of(vocabulary, s) for s in scores])
    found: list[tuple[str, Task, np.ndarray]] = []
    for one, path, given in zip(batches, files, rows):  # those of other processes, too
        if path.is_file():
            found += [(one.kind, task, ids) for task, ids in zip(given, _read_fields(path)) if len(ids)]
    for split, given in tasks.items():
        found += [(HUMAN, task, field_of(vocabulary, task.human)) for task in given]
        for kind, task, score in corrupted(given, sizes[split].corrupted, seed):
            found.append((kind, task, field_of(vocabulary, score)))
    examples = [
        LabelledExample(ids, int(kind != HUMAN), task.song, task.cluster, task.split, kind, task.prompt)
        for kind, task, ids in found
    ]
    result = LabelledData(NAMES, examples, vocabulary)
    result.save(cache / "quality.npz")
    return result


def _write_fields(path: Path, fields: Sequence[np.ndarray | None]) -> None:
    parts = [np.empty(0, np.int32) if f is None else f for f in fields]
    arrays = {"ids": np.concatenate(parts).astype(np.int16), "end": np.cumsum([len(p) for p in parts])}
    replace_file(path, lambda partial: np.savez_compressed(partial, **arrays))


def _read_fields(path: Path) -> list[np.ndarray]:
    with np.load(path, allow_pickle=False) as stored:
        return np.split(stored["ids"].astype(np.int32), stored["end"])[:-1]


def print_counts(data: LabelledData) -> None:
    """One line a kind: windows of each split."""
    split, kind = data.column("split"), data.column("kind")
    print("| kind | " + " | ".join(SPLITS) + " |\n|---|---|---|---|")
    for name in dict.fromkeys(kind.tolist()):
        counts = (int(((kind == name) & (split == s)).sum()) for s in SPLITS)
        print(f"| {name} | " + " | ".join(map(str, counts)) + " |")


def _part(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    return int(part), int(parts)  # argparse makes an error of what is no number


def main(words: list[str] | None = None) -> int:
    """The command line: exit code 2 and one line for what a user can mend."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of the training pack")
    parser.add_argument("--cache", required=True, help="folder for prepared stores, batches of samples and the set")
    parser.add_argument("--model", default="mortm-starter", help="checkpoint that is sampled")
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--minutes", type=float, default=0.0, help="stop sampling after this long; 0: when all is done"
    )
    parser.add_argument("--rounds", type=int, default=1, help="answers to each prompt of a train song, 1 to 3")
    parser.add_argument(
        "--part", type=_part, default=(0, 1), metavar="K/N", help="0/N to N-1/N, for N processes side by side"
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--without-starter", action="store_true", help="only what needs no trained checkpoint")
    options = parser.parse_args(words)

    torch.set_num_threads(options.threads)
    try:
        made = make(
            options.data,
            options.cache,
            options.model,
            batch=options.batch,
            seed=options.seed,
            minutes=options.minutes,
            without_starter=options.without_starter,
            rounds=options.rounds,
            part=options.part,
            device=options.device,
        )
    except (ValueError, FileNotFoundError) as error:
        print(f"quality: {error}", file=sys.stderr)
        return 2
    print_counts(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
