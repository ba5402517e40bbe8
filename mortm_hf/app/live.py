"""`mortm live`: playing with a MORTM Live checkpoint, on MIDI ports in real time, or along a MIDI file.

Design decisions
- Ports come from mido (with python-rtmidi); both are only looked for when a port is asked for.
- In real time one thread decides and another sends: what is decided early is sent on its own time. The first listens
  on the port between two cuts, so no note waits for the model.
- A file is played in simulated time: the same session, faster, and the answer is a file.

Knows: argparse, ports, the session. Must not know: rolls, models' layers.
"""

from __future__ import annotations

import argparse
import heapq
import threading
import time
from pathlib import Path

from ..bundled import default_model, find_model
from ..models.errors_mortm import LiveError
from ..training.library_calls import without_bars
from .files import Outputs
from .options import number


ALL_OFF = (120, 123)  # MIDI controls: all sound off, all notes off
EXAMPLES = """examples:
  mortm live song.mid -o both.mid --slots 0 1                     the bundled model accompanies the first track
  mortm live song.mid -o both.mid --model my-live --play 0        your own plays slot 0
  mortm live --ports                                              the MIDI ports of this machine
  mortm live --input "Keystation" --output "FluidSynth" --bpm 96 --follow
  mortm live --input "to mortm" --output "from mortm" --virtual   ports of its own, to be connected by others

Slots count from 0; `--play` names those of the model, the others are heard. Ctrl-C ends all notes and prints what
happened."""


def add_command(commands) -> None:
    """Adds `live` to the parser's commands."""
    parser = commands.add_parser(
        "live",
        description="Hears some instruments and plays the others, in real time or along a MIDI file.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add("file", nargs="?", type=Path, help="MIDI file to play along")
    add("-o", "--out", type=Path, metavar="FILE", help="MIDI file to write: all that was heard and played")
    add("--model", type=Path, help="folder of a MORTM Live checkpoint (default: the bundled one)")
    add("--play", type=int, nargs="+", default=[1], metavar="SLOT", help="slots of the model (default 1)")
    add(
        "--slots", type=int, nargs="+", metavar="SLOT", help="slot of each track of the file, -1 for none (by program)"
    )
    add("--bpm", type=number(20, 400), help="quarters a minute (default 120, or the file's)")
    add("--threshold", type=number(0, 1), default=0.5, help="cells above it sound (default 0.5)")
    add("--lead", type=number(0, 2), default=0.08, help="seconds a chunk is cut early (default 0.08)")
    add("--follow", action="store_true", help="follow the tempo of what is heard")
    add("--input", metavar="PORT", help="MIDI port to hear")
    add("--output", metavar="PORT", help="MIDI port to play on")
    add("--virtual", action="store_true", help="make ports of these names for others to connect to (not on Windows)")
    add("--seconds", type=number(0), help="end after so many seconds (default: Ctrl-C)")
    add("--ports", action="store_true", help="list the MIDI ports, and stop")
    add("--json", type=Path, metavar="FILE", help="write what happened (chunks, misses, latencies)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Plays.

    Raises:
        LiveError: no model, no port, slots that are not there.
        MidiError: the file cannot be used.
    """
    if args.ports:
        ports = _mido()
        for title, names in (("input", ports.get_input_names()), ("output", ports.get_output_names())):
            print(f"{title}:", *(f"  {name}" for name in names or ["(none)"]), sep="\n")
        return
    if (args.file is None) == (args.input is None and args.output is None):
        raise LiveError("give a MIDI file with -o FILE, or ports with --input and --output")
    if args.file is not None and args.out is None:
        raise LiveError("a file to play along needs a file to write: -o FILE")
    session = load_session(
        find_model(args.model or default_model("live")),
        play=args.play,
        bpm=args.bpm or 120.0,
        lead=args.lead,
        threshold=args.threshold,
        follow=args.follow,
    )
    with Outputs([args.file] if args.file else [], args.json) as out:
        if args.file is not None:
            _along(session, args, out.stage(args.out))
        else:
            _in_real_time(session, args)
        happened = session.statistics.summary()
        out.report(happened)
    print(", ".join(f"{name} {round(value, 1)}" for name, value in happened.items()))


def load_session(folder, **options):
    """A session with the model and processor of a folder.

    Args:
        folder: a MORTM Live checkpoint.
        **options: those of `LiveSession`.

    Raises:
        LiveError: the folder holds no MORTM Live checkpoint.
    """
    import torch

    from ..models.modeling_mortm_live import MortmLiveForCausalGeneration
    from ..models.processing_mortm_live import MortmLiveProcessor
    from .live_session import LiveSession

    if not (Path(folder) / "preprocessor_config.json").is_file():
        raise LiveError(f"{folder} holds no MORTM Live checkpoint (no preprocessor_config.json)")
    torch.set_num_threads(1)  # one small step at a time: more threads only wait for each other
    with without_bars():
        model = MortmLiveForCausalGeneration.from_pretrained(folder, dtype=torch.float32)
    return LiveSession(model, MortmLiveProcessor.from_pretrained(folder), **options)


def _along(session, args: argparse.Namespace, staged: Path) -> None:
    from tqdm.auto import tqdm

    from ..models.midi_files import open_midi
    from .live_session import play_along

    score, quantised = open_midi(args.file)
    slots = session.processor.slot_of_tracks(quantised.programs) if args.slots is None else args.slots
    if not set(slots) & set(session.others):
        tracks = ", ".join(
            f"{name or 'track'} (program {p})" for name, p in zip(quantised.names, quantised.programs.tolist())
        )
        raise LiveError(
            f"{args.file}: no track is heard (slots {session.others}): it has {tracks}; name a slot for each of them, "
            "or -1, with --slots"
        )
    if args.bpm is None and len(score.tempos):
        session.set_tempo(min(400.0, max(20.0, float(score.tempos[0].qpm))))
    bpm = session.bpm
    with tqdm(total=0, desc="playing", unit="chunk") as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        notes = play_along(session, quantised, slots, on_chunk=show)
    processor = session.processor
    roll = processor.notes_to_roll(notes.slot, notes.onset, notes.pitch, notes.duration, notes.velocity)
    processor.roll_to_score(roll, bpm).dump_midi(str(staged))


def _mido():
    try:
        import mido

        mido.get_output_names()  # the backend is loaded here
        return mido
    except (ImportError, AttributeError) as error:
        raise LiveError(
            f"MIDI ports need mido and python-rtmidi ({error}): pip install mido python-rtmidi", "live.missing"
        ) from None
    except OSError as error:
        raise LiveError(f"this machine's MIDI ports cannot be reached: {error}", "live.port") from None


def _open(open_port, name: str | None, names: list[str], virtual: bool = False):
    """The first port whose name contains `name`, or a new one of that name for others to connect to."""
    if name is None:
        return None
    fits = [name] if virtual else [known for known in names if name.lower() in known.lower()]
    if not fits:
        raise LiveError(f"no MIDI port {name!r}; there are: {', '.join(names) or 'none'}", "live.port")
    try:
        return open_port(fits[0], virtual=True) if virtual else open_port(fits[0])
    except Exception as error:  # each backend has errors of its own
        raise LiveError(f"cannot open the MIDI port {fits[0]!r}: {error}", "live.port") from None


class Sender:
    """Sends events at their time, in a thread of its own, and knows what it left sounding.

    Args:
        send: called with each event, from one thread at a time.
        clock: gives seconds, as the events' times.
    """

    def __init__(self, send, clock=time.monotonic):
        self.send, self.clock = send, clock
        self._waiting: list[tuple[float, int, object]] = []
        self._sounding: dict[tuple[int, int], None] = {}
        self._count = 0
        self._change = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, events) -> None:
        """Take events to be sent; those in the past are sent at once.

        Args:
            events: `LiveEvent`s in any order.
        """
        with self._change:
            for event in events:
                self._count += 1  # keeps the order of events of one time
                heapq.heappush(self._waiting, (event.time, self._count, event))
            self._change.notify()

    def _run(self) -> None:
        while True:
            with self._change:
                while not self._closed and (not self._waiting or self._waiting[0][0] > self.clock()):
                    self._change.wait(max(0.0, self._waiting[0][0] - self.clock()) if self._waiting else None)
                if self._closed:
                    return
                # sent before the lock is given back: nothing that `panic` ends can begin after it
                self._pass_on(heapq.heappop(self._waiting)[2])

    def _pass_on(self, event) -> None:
        if event.velocity:
            self._sounding[event.slot, event.pitch] = None
        else:
            self._sounding.pop((event.slot, event.pitch), None)
        self.send(event)

    def panic(self) -> None:
        """What was not sent yet never is, and what sounds ends."""
        from .live_session import LiveEvent

        with self._change:
            self._waiting.clear()
            for slot, pitch in list(self._sounding):
                self._pass_on(LiveEvent(self.clock(), slot, pitch, 0))

    def close(self) -> None:
        """Panic, and the end of the thread."""
        self.panic()
        with self._change:
            self._closed = True
            self._change.notify()
        self._thread.join(timeout=2)


def play_live(session, poll, send, seconds: float | None = None, clock=time.monotonic, sleep=time.sleep) -> None:
    """A session in real time, until the seconds are over or it is interrupted; all notes end then.

    Args:
        session: the session.
        poll: gives what came in since the last call: (slot, pitch, velocity) of each note, None for "end all notes".
        send: called with each event of the model at its time.
        seconds: how long; None: until it is interrupted.
        clock: gives seconds.
        sleep: waits so many seconds.
    """
    sender = Sender(send, clock)
    session.start(clock())
    started = clock()
    try:
        while seconds is None or clock() - started < seconds:
            now = clock()
            for note in poll():
                if note is None:
                    session.panic(now)
                    sender.panic()
                else:
                    session.push(now, *note)
            if now >= session.next_cut():
                sender.put(session.advance(now, finished=clock))
            else:
                sleep(min(0.001, max(0.0, session.next_cut() - now)))
    except KeyboardInterrupt:
        pass
    finally:
        session.panic(clock())
        sender.close()


def _in_real_time(session, args: argparse.Namespace) -> None:
    mido = _mido()
    slot = session.others[0] if session.others else None
    channels = {number: n for n, number in enumerate(session.play)}
    port_in = port_out = None

    def poll():
        for message in port_in.iter_pending() if port_in is not None else ():
            if message.type in ("note_on", "note_off"):
                if slot is not None:
                    yield slot, message.note, message.velocity if message.type == "note_on" else 0
            elif message.type == "control_change" and message.control in ALL_OFF:
                yield None

    def send(event) -> None:
        if port_out is not None:
            kind = "note_on" if event.velocity else "note_off"
            port_out.send(mido.Message(kind, channel=channels[event.slot], note=event.pitch, velocity=event.velocity))

    try:
        port_in = _open(mido.open_input, args.input, mido.get_input_names(), args.virtual)
        port_out = _open(mido.open_output, args.output, mido.get_output_names(), args.virtual)
        print(f"hearing {args.input or 'nothing'}, playing on {args.output or 'nothing'}; Ctrl-C ends", flush=True)
        play_live(session, poll, send, args.seconds)
    finally:
        for port in (port_in, port_out):
            if port is not None:
                port.close()
