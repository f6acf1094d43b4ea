"""The line that brings a failure back, and the parts that it is made of."""

from __future__ import annotations

import random
import re
import shlex
import subprocess
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agentcore import AgentError
from agentcore.testing import FIFO, RUN_TO_BLOCK, CancelPoint, Fault, FaultPlan, InjectedFault, Replay, Schedule, Switch
from agentcore.testing._replay import LIMIT, MODES, VARIABLE, forced_replay, shortest

MANY = settings(max_examples=100, deadline=None, database=None, derandomize=True)

numbers = st.integers(0, 10**6)
switches = st.builds(Switch, numbers, numbers, st.integers(0, 3), numbers)
schedules = st.one_of(
    st.sampled_from([FIFO, RUN_TO_BLOCK]),
    st.builds(Schedule, st.sampled_from(["walk", "rare"]), numbers),
    st.builds(Schedule, st.just("pct"), numbers, st.integers(1, 10**6)),
    st.builds(lambda many: Schedule(switches=many), st.lists(switches, min_size=1, max_size=30)),
)
points = st.builds(CancelPoint, st.sampled_from(MODES), numbers)

# Everything that could end a part of the line too early: quotes, semicolons, colons, brackets, commas, line ends.
words = st.text(st.sampled_from("'\";:,()#>|$`\\ \n\t\0é\u2028a\ud800"), max_size=8)
literals: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | words | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.tuples(inner, inner) | st.dictionaries(words, inner, max_size=2),
    max_leaves=4,
)
errors = st.sampled_from([InjectedFault, ValueError, TimeoutError, AgentError, re.error, subprocess.TimeoutExpired])


@st.composite
def faults(draw: st.DrawFn) -> Fault:
    """Draw a fault with an argument that its action takes."""
    action = draw(st.sampled_from(["raise", "raise_after", "delay", "hang", "cancel", "corrupt", "duplicate"]))
    argument = {
        "raise": errors,
        "raise_after": errors,
        "delay": st.floats(0, 1e9, allow_nan=False),
        "corrupt": literals,
    }.get(action, st.none())
    target = draw(st.from_regex(r"[\w.:/-]+", fullmatch=True).filter(lambda name: len(name) < 20))
    return Fault(target, draw(st.integers(1, 99)), action, draw(argument), draw(st.booleans()))  # type: ignore[arg-type]


plans = st.lists(faults(), max_size=4, unique_by=lambda fault: (fault.target, fault.call, fault.onwards)).map(FaultPlan)
replays = st.builds(Replay, st.sampled_from(["asyncio", "trio"]), schedules, st.none() | points, plans)

LONG = Replay("trio", Schedule(switches=[Switch(number, 1, 0, 2) for number in range(60)]))


# ------------------------------------------------------------------------------------------ the parts


@MANY
@given(switches)
def test_a_switch_reads_back(switch: Switch) -> None:
    assert Switch.parse(str(switch)) == switch


@pytest.mark.parametrize(
    ("switch", "text"),
    [(Switch(4, 2, 0, 5), "4.2>5"), (Switch(4, 2, 1, 5), "4.2.1>5"), (Switch(0, 0, 0, 0), "0.0>0")],
)
def test_a_switch_is_short(switch: Switch, text: str) -> None:
    assert str(switch) == text


@pytest.mark.parametrize("text", ["", "4", "4.2", "4.2>", ">5", "4.2>5.1", "4.2.1.1>5", "-1.2>5", "4.2>5 ", "a.b>c"])
def test_what_is_no_switch_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"a switch reads task.stop>task, such as 4.2>5: got {text!r}")):
        Switch.parse(text)


@MANY
@given(schedules)
def test_a_schedule_reads_back(schedule: Schedule) -> None:
    assert Schedule.parse(str(schedule)) == schedule
    # Its repr is a line of Python that makes it.
    assert eval(repr(schedule)) == schedule


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (FIFO, "fifo"),
        (RUN_TO_BLOCK, "-"),
        (Schedule("walk", 7), "walk/7"),
        (Schedule("rare", 7), "rare/7"),
        (Schedule("pct", 7, 128), "pct/7/128"),
        (Schedule(switches=[Switch(4, 2, 0, 5), Switch(7, 1, 3, 2)]), "4.2>5,7.1.3>2"),
    ],
)
def test_a_schedule_is_short(schedule: Schedule, text: str) -> None:
    assert str(schedule) == text


@pytest.mark.parametrize(
    "text", ["fifo/1", "walk", "walk/", "walk/x", "-1", "4.2>5,", ",", "dfs", "portfolio", " fifo"]
)
def test_what_is_no_schedule_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a switch reads task"):
        Schedule.parse(text)


def test_an_unknown_strategy_is_refused() -> None:
    told = "the strategy of a schedule is one of switches, fifo, walk, rare, pct: got 'dfs'"
    with pytest.raises(ValueError, match=told):
        Schedule("dfs")


def test_the_empty_text_switches_nowhere() -> None:
    assert Schedule.parse("") == Schedule.parse("-") == RUN_TO_BLOCK


def test_pct_without_a_length_takes_that_of_a_schedule() -> None:
    assert Schedule.parse("pct/7") == Schedule("pct", 7)


@MANY
@given(points)
def test_a_cancel_point_reads_back(point: CancelPoint) -> None:
    assert CancelPoint.parse(str(point)) == point


@pytest.mark.parametrize("text", ["", "block", "block@", "@1", "block@-1", "sometimes@1", "block@1@2", "Block@1"])
def test_what_is_no_cancel_point_is_refused(text: str) -> None:
    told = f"a cancel point reads mode@index, the mode one of block, wake, deadline, native: got {text!r}"
    with pytest.raises(ValueError, match=re.escape(told)):
        CancelPoint.parse(text)


# ------------------------------------------------------------------------------------------ the line


@MANY
@given(replays)
@example(Replay("asyncio", FIFO, None, FaultPlan([Fault("a", 1, "corrupt", 'it\'s; "so":')])))
@example(Replay("asyncio", FIFO, None, FaultPlan([Fault("a", 1, "corrupt", ["'", '"', "\\", "\n", ");b#1:hang"])])))
def test_a_line_reads_back(replay: Replay) -> None:
    """Whatever strings its faults have in them, and whether it is compressed or not."""
    assert Replay.parse(str(replay)) == replay
    assert Replay.parse(f"  {replay}\n") == replay


@MANY
@given(replays)
def test_a_shell_reads_the_assignment(replay: Replay) -> None:
    """As one word, whose quotes are gone."""
    (word,) = shlex.split(replay.assignment)
    name, _, line = word.partition("=")
    assert (name, Replay.parse(line)) == (VARIABLE, replay)


@MANY
@given(replays)
def test_a_line_is_one_line(replay: Replay) -> None:
    """It is compressed if it would be longer than the limit, and if that makes it shorter."""
    line = str(replay)
    assert line.splitlines() == [line]
    assert line.isprintable()
    if len(replay.assignment) > LIMIT:
        assert len(line) <= len(_plain(replay))
    if line.startswith("sim1z:"):
        assert len(_plain(replay)) > LIMIT - len(f"{VARIABLE}=''")


def _plain(replay: Replay) -> str:
    point = "" if replay.cancel is None else str(replay.cancel)
    return shlex.quote(f"sim1:{replay.backend}:{replay.schedule}:{point}:{replay.plan}".rstrip(":"))


@pytest.mark.parametrize(
    ("replay", "assignment"),
    [
        (Replay("trio", Schedule.parse("4.2>5")), "AGENTCORE_SIM='sim1:trio:4.2>5'"),
        (Replay("asyncio", RUN_TO_BLOCK), "AGENTCORE_SIM='sim1:asyncio:-'"),
        (Replay("trio", FIFO, CancelPoint("wake", 12)), "AGENTCORE_SIM='sim1:trio:fifo:wake@12'"),
        (
            Replay("trio", FIFO, None, FaultPlan.parse("api#1:raise;db#2+:delay(0.5)")),
            "AGENTCORE_SIM='sim1:trio:fifo::api#1:raise(InjectedFault);db#2+:delay(0.5)'",
        ),
        (
            Replay("trio", FIFO, CancelPoint("block", 3), FaultPlan.parse("api#1:hang")),
            "AGENTCORE_SIM='sim1:trio:fifo:block@3:api#1:hang'",
        ),
        (
            Replay("trio", FIFO, None, FaultPlan.parse("api#1:corrupt('x')")),
            """AGENTCORE_SIM='sim1:trio:fifo::api#1:corrupt('"'"'x'"'"')'""",
        ),
    ],
)
def test_an_assignment_is_always_quoted(replay: Replay, assignment: str) -> None:
    assert replay.assignment == assignment


@pytest.mark.parametrize("text", ["'", '"', "$HOME `ls` \\ !", "a\nb", 'it\'s; "so"', "*"])
def test_a_shell_hands_the_line_on(text: str) -> None:
    """A real one, for every character that it could take for its own."""
    replay = Replay("asyncio", RUN_TO_BLOCK, None, FaultPlan([Fault("api", 1, "corrupt", text)]))
    script = f"{replay.assignment} printenv {VARIABLE}"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert Replay.parse(done.stdout) == replay


def test_a_long_line_is_compressed() -> None:
    """Which leaves the letters that no shell minds."""
    line = str(LONG)
    assert line.startswith("sim1z:")
    assert re.fullmatch(r"[\w:-]+", line)
    assert len(line) < len(_plain(LONG)) / 2
    assert Replay.parse(line) == LONG


def test_a_line_that_gets_no_shorter_stays_as_it_is() -> None:
    noise = "".join(random.Random(1).choices("".join(map(chr, range(48, 91))), k=180))
    replay = Replay("trio", FIFO, None, FaultPlan([Fault("api", 1, "corrupt", noise)]))
    assert len(replay.assignment) > LIMIT
    assert str(replay).startswith("sim1:")
    assert Replay.parse(str(replay)) == replay


@pytest.mark.parametrize("length", [LIMIT - 1, LIMIT, LIMIT + 1])
def test_the_limit_is_that_of_the_assignment(length: int) -> None:
    """What is copied counts, with the name of the variable and the quotes."""
    empty = len(Replay("trio", FIFO, None, FaultPlan([Fault("a", 1, "hang")])).assignment)
    replay = Replay("trio", FIFO, None, FaultPlan([Fault("a" * (length - empty + 1), 1, "hang")]))
    assert len(_plain(replay)) == length - len(f"{VARIABLE}=") - (0 if _plain(replay).startswith("'") else 2)
    assert str(replay).startswith("sim1:") == (length <= LIMIT)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("", "it begins with sim1:asyncio: or sim1:trio:"),
        ("sim1", "it begins with"),
        ("sim1:", "it begins with"),
        ("sim1:curio:-", "it begins with"),
        ("sim2:trio:-", "it begins with"),
        ("hello", "it begins with"),
        ("AGENTCORE_SIM='sim1:trio:-'", "it begins with"),
        ("sim1:trio:walk", "a switch reads task.stop>task, such as 4.2>5: got 'walk'"),
        ("sim1:trio:4.2>", "a switch reads task.stop>task, such as 4.2>5: got '4.2>'"),
        ("sim1:trio:-:never@1", "a cancel point reads mode@index"),
        ("sim1:trio:-:api#1:hang", "a cancel point reads mode@index"),
        ("sim1:trio:-::api#0:hang", "call of a fault must be 1 or more: got 0"),
        ("sim1:trio:-::api", "a fault must read"),
        ("sim1:trio:-::api#1:raise(NoSuchError)", "exception of a fault must be found by its name"),
        ("sim1:trio:-::api#1:explode", "action of a fault must be one of"),
        ("sim1z:", ""),
        ("sim1z:!!!", ""),
        ("sim1z:AAAA", ""),
        ("sim1z:é", ""),
        (str(LONG)[:-8], ""),
    ],
)
def test_what_is_no_line_is_refused(line: str, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"this is no replay line: {line!r}: {told}")):
        Replay.parse(line)


@pytest.mark.parametrize(
    "fault", ["api#1:delay('soon')", "api#1:hang(1)", "api#1:raise(builtins:print)", "api#1:duplicate(None,)"]
)
def test_a_fault_of_the_wrong_type_is_no_line_either(fault: str) -> None:
    with pytest.raises(ValueError, match="this is no replay line"):
        Replay.parse(f"sim1:trio:-::{fault}")


# ------------------------------------------------------------------------------------------ which line


def test_the_first_line_that_fits_is_told() -> None:
    seed = Replay("trio", Schedule("walk", 7))
    short = Replay("trio", Schedule.parse("4.2>5"))
    noisy = Replay(
        "trio", Schedule(switches=[Switch(n * n * 7919 % 9973, n * 31 % 97, 0, n * n * 13 % 8191) for n in range(99)])
    )
    noisier = Replay(noisy.backend, Schedule(switches=(*noisy.schedule.switches, *noisy.schedule.switches)))
    assert len(noisy.assignment) > LIMIT
    assert shortest(short, seed) is short
    assert shortest(seed, short) is seed
    assert shortest(noisy, seed) is seed
    assert shortest(noisier, noisy) is noisy
    assert shortest(noisy) is noisy


def test_the_environment_names_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert forced_replay() is None
    monkeypatch.setenv(VARIABLE, "")
    assert forced_replay() is None
    for replay in (Replay("trio", FIFO, CancelPoint("wake", 3)), LONG):
        monkeypatch.setenv(VARIABLE, str(replay))
        assert forced_replay() == replay
    monkeypatch.setenv(VARIABLE, "sim2:trio:-")
    with pytest.raises(ValueError, match="this is no replay line: 'sim2:trio:-'"):
        forced_replay()
