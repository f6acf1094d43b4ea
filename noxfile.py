"""The gates: every check of this project, each a session.

`nox` runs all that are quick; `nox -l` lists the rest. CONTRIBUTING.md says what each is for.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import nox

nox.needs_version = ">=2025.10"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.download_python = "never"
# A version that is not on this machine is skipped with a message, on CI as well.
nox.options.error_on_missing_interpreters = False
os.environ["UV_PYTHON_DOWNLOADS"] = "never"
# As pip does: trust what this machine trusts, a company's own proxy for instance.
os.environ.setdefault("UV_SYSTEM_CERTS", "1")

ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
OLDEST = PYTHONS[0]
# All that are quick. The tests of the oldest version are not among them: `coverage` and `searches` run the same.
nox.options.sessions = [
    "lint",
    "layers",
    "types",
    *(f"tests-{version}" for version in PYTHONS[1:]),
    "lowest",
    "coverage",
    "searches",
    "docs",
    "examples",
    "api",
    "import_cost",
    "wheel",
]
# What `searches` does, which are of another kind: real hosts, and everything in every order.
SEARCHES = ("embedding", "planted", "sweeps")
# What `examples` does.
SHOWN = ("examples", "test_examples.py")
QUICK = [
    "-m",
    "not thorough and not campaign",
    *(f"--ignore=tests/{name}" for name in (*SEARCHES, *SHOWN, "test_docs.py")),
]
# Of each simulation one order. The others do not depend on the version, and are looked for on one of them.
ONCE = ["--sim-runs", "1"]
# Besides, without what hardly depends on a version or on another library; of the pools nothing but the table of outcomes,
# and of the testing kit its simulator. For the versions between the oldest and the newest.
NARROW = [
    *QUICK,
    *(f"--ignore=tests/{name}" for name in ("cli", "config", "rules")),
    "--ignore-glob=tests/pools/test_[!o]*",
    "--ignore-glob=tests/testing/test_[!s]*",
]
# On asyncio and trio alone, where all other event loops have been tried already.
PLAIN = "--plain-loops"
# What depends on the version the most, where another one has had more. For the newest, and for old libraries.
NARROWEST = [PLAIN, *ONCE, *NARROW, "--ignore-glob=tests/core/test_[!os]*"]
EXTRAS = ".[cli,testing,trio]"
COVERAGE_FLOOR = 95


def interpreters(version: str) -> Iterator[Path]:
    """Yield where Python `version` could be: on the path, or among pyenv's versions."""
    if found := shutil.which(f"python{version}"):
        yield Path(found)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}"), reverse=True)


def runs(python: Path) -> bool:
    """Tell whether `python` starts: pyenv's shims stand for versions that are switched off too."""
    done = subprocess.run([python, "-c", ""], capture_output=True, check=False)
    return done.returncode == 0


def show_interpreters() -> list[str]:
    """Put the interpreters of this machine where nox looks for them; return their versions."""
    present = []
    for version in PYTHONS:
        python = next((path for path in interpreters(version) if runs(path)), None)
        if python:
            present.append(version)
            if str(python) != shutil.which(f"python{version}"):
                os.environ["PATH"] = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    return present


PRESENT = show_interpreters()
if OLDEST not in PRESENT and os.environ.get("CI"):
    sys.exit(f"Python {OLDEST} must be tested, and is not on this machine")
# For the sessions whose verdict does not depend on the version.
BASE = PRESENT[0] if PRESENT else None


def group(name: str) -> list[str]:
    """Return the requirements of one dependency group."""
    return list(nox.project.dependency_groups(PROJECT, name))


def install(session: nox.Session, *groups: str) -> None:
    """Install the project in place, with its extras and the named dependency groups."""
    session.install("-e", EXTRAS, *(line for name in groups for line in group(name)))


def sources(*folders: str) -> list[str]:
    """Return the Python files below `folders`."""
    return [str(path) for name in folders for path in sorted((ROOT / name).rglob("*.py"))]


@nox.session(python=BASE)
def lint(session: nox.Session) -> None:
    """Check format and style; find awaits that a cancelled `finally` would lose."""
    session.install(*group("lint"))
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    # Run by itself: ruff's ASYNC rules lack ASYNC102, the await in `finally` without a shield.
    # ASYNC109: `timeout` is what the specification calls it.
    # In two halves side by side: it takes its time.
    tool = str(shutil.which("flake8-async", path=session.bin))
    files = sources("agentcore", "examples")
    options = ["--anyio", "--disable=ASYNC9,ASYNC109"]
    halves = [subprocess.Popen([tool, *options, *files[first::2]]) for first in (0, 1)]
    codes = [half.wait() for half in halves]
    if any(codes):
        session.error("flake8-async has found something, see above")


@nox.session(python=BASE)
def layers(session: nox.Session) -> None:
    """Check who imports whom."""
    install(session, "lint")
    session.run("lint-imports", "--no-logo")


@nox.session(python=BASE)
def types(session: nox.Session) -> None:
    """Check the types of the package, of what users see of it, and that they see all of it."""
    install(session, "test", "typing")
    session.run("mypy")
    session.run("mypy", "--strict", "tests/typing")
    # Without a version check of its own, pyright needs no network.
    quiet = {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    session.run("pyright", env=quiet)
    session.run("pyright", "--verifytypes", "agentcore", "--ignoreexternal", env=quiet)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests, two at a time: on the oldest version all of them, on the others what may depend on the version."""
    install(session, "test", *(["hosts"] if session.python == OLDEST else []))
    chosen = {OLDEST: [], PYTHONS[-1]: NARROWEST}.get(str(session.python), NARROW)
    session.run("python", "-m", "pytest", "-n", "2", *chosen, *session.posargs)


@nox.session(python=BASE, reuse_venv=False)
def lowest(session: nox.Session) -> None:
    """Run the tests with the lowest version of each dependency that is still supported."""
    session.install("uv")
    session.run("uv", "pip", "install", "--quiet", "--resolution=lowest-direct", "-e", EXTRAS)
    session.run("uv", "pip", "install", "--quiet", *group("test"))
    session.run("uv", "pip", "list", "--quiet")
    session.run("python", "-m", "pytest", "-n", "2", *NARROWEST, *session.posargs)


@nox.session(python=BASE)
def coverage(session: nox.Session) -> None:
    """Run the tests and measure their branch coverage: 95% of the package, all of its rules."""
    install(session, "test")
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", "-n", "2", PLAIN, *ONCE, *QUICK, *session.posargs)
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report", f"--fail-under={COVERAGE_FLOOR}")
    session.run("coverage", "report", "--include=agentcore/_rules/*", "--fail-under=100")


@nox.session(python=BASE)
def searches(session: nox.Session) -> None:
    """Run what takes its time: every cancellation, fault and order that the quick ones leave out, in real hosts too."""
    install(session, "test", "hosts")
    session.run("python", "-m", "pytest", "-n", "2", *(f"tests/{name}" for name in SEARCHES), *session.posargs)


@nox.session(python=BASE, default=False)
def thorough(session: nox.Session) -> None:
    """Run the long searches of single parts, and what measures memory: a matter of minutes."""
    install(session, "test")
    elsewhere = [f"--ignore=tests/{name}" for name in SEARCHES]
    session.run("python", "-m", "pytest", "-n", "2", "-m", "thorough and not campaign", *elsewhere, *session.posargs)


@nox.session(python=BASE)
def docs(session: nox.Session) -> None:
    """Run every snippet of the README, of the pages in docs and of the docstrings."""
    install(session, "test")
    session.run("python", "-m", "pytest", "tests/test_docs.py", *session.posargs)


@nox.session(python=BASE)
def examples(session: nox.Session) -> None:
    """Run each example as a user does, on both backends."""
    install(session, "test")
    session.run("python", "-m", "pytest", "-n", "2", *(f"tests/{name}" for name in SHOWN), *session.posargs)


@nox.session(python=BASE)
def api(session: nox.Session) -> None:
    """Compare the public surface with tests/api.txt; `-- --update` changes it on purpose."""
    install(session, "test")
    if "--update" in session.posargs:
        session.run("python", "tests/test_api.py", "--update")
    else:
        session.run("python", "-m", "pytest", "tests/test_api.py", *session.posargs)


@nox.session(python=BASE)
def import_cost(session: nox.Session) -> None:
    """Check what `import agentcore` loads, and print what it costs."""
    install(session, "test")
    session.run("python", "-m", "pytest", "tests/test_import_cost.py", *session.posargs)
    python = shutil.which("python", path=session.bin)
    bare, loaded = (start_time(str(python), code) for code in ("pass", "import agentcore"))
    session.log(
        f"import agentcore: {(loaded - bare) * 1e3:.0f} ms more than the {bare * 1e3:.0f} ms "
        f"that a bare interpreter takes to start and end ({loaded / bare:.1f}x)"
    )


def start_time(python: str, code: str) -> float:
    """Return the median of the seconds that `python -c code` takes."""
    rounds = []
    for _ in range(15):
        started = time.perf_counter()
        subprocess.run([python, "-c", code], check=True)
        rounds.append(time.perf_counter() - started)
    return statistics.median(rounds)


@nox.session(python=BASE)
def wheel(session: nox.Session) -> None:
    """Build the distributions, look into the wheel, and use it in an environment of its own."""
    session.install("build[uv]")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        session.run("python", "-m", "build", "--installer=uv", f"--outdir={folder}", silent=True)
        (built,) = folder.glob("*.whl")
        check_contents(session, built)
        use(session, built, folder / "clean")


def check_contents(session: nox.Session, built: Path) -> None:
    """Refuse a wheel that lacks a module, the type marker or the licence, or has too much."""
    names = zipfile.ZipFile(built).namelist()
    package = {str(Path(path).relative_to(ROOT)) for path in sources("agentcore")}
    info = built.name.removesuffix("-py3-none-any.whl") + ".dist-info/"
    required = package | {"agentcore/py.typed", f"{info}licenses/LICENSE"}
    if missing := sorted(required.difference(names)):
        session.error(f"{built.name} lacks {missing}")
    if foreign := [name for name in names if name not in required and not name.startswith(info)]:
        session.error(f"{built.name} should not have {foreign}")


def use(session: nox.Session, built: Path, folder: Path) -> None:
    """Install the wheel with pip as a user does, first bare and then with its extras."""
    session.run("python", "-m", "venv", folder)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    python, command = str(scripts / "python"), str(scripts / "agentcore")
    with session.chdir(folder):
        for requirement, backend in ((built, "asyncio"), (f"{built}[cli,trio]", "trio")):
            session.run(python, "-m", "pip", "install", "-q", requirement, external=True)
            # The testing kit too: without pytest, Hypothesis and, at first, trio.
            session.run(python, "-c", "import agentcore; from agentcore.testing import run_sim", external=True)
            job = ["run", f"{ROOT / 'examples/triage.py'}:workflow", "--input", ROOT / "examples"]
            session.run(command, *job, "--backend", backend, external=True, silent=True)
        session.run(python, "-m", "pip", "check", external=True)


@nox.session(python=BASE, default=False)
def planted(session: nox.Session) -> None:
    """Search for every planted bug from scratch, and run their correct twins 100,000 times: a matter of minutes."""
    install(session, "test")
    session.run("python", "-m", "tests.planted.campaign", *session.posargs)


@nox.session(python=BASE, default=False)
def campaign(session: nox.Session) -> None:
    """Run what is left out by default: sweeps once more in hosted runtimes, 2,000 killed workers, a million jobs."""
    install(session, "test")
    session.run("python", "-m", "pytest", "-n", "2", "-m", "campaign", "tests", *session.posargs)


@nox.session(python=BASE, default=False)
def bench(session: nox.Session) -> None:
    """Measure against what the project promises; not in the default run, for it takes its time."""
    install(session, "test", "bench", "peers")
    for name in ("core", "breaker", "simulation", "mutants"):
        session.run("python", f"benchmarks/{name}.py", *session.posargs)


@nox.session(python=BASE, default=False)
def bench_runtime(session: nox.Session) -> None:
    """Measure what passes through a runtime, beside frameworks for agents, in an environment that has them."""
    session.install("-e", ".[trio]", *group("agent-peers"))
    session.run("python", "benchmarks/runtime.py", *session.posargs)


@nox.session(python=BASE, default=False)
def bench_pools(session: nox.Session) -> None:
    """Measure worker pools beside others, in an environment that has them."""
    session.install("-e", ".[trio]", *group("pool-peers"))
    session.run("python", "benchmarks/pools.py", *session.posargs)


@nox.session(python=BASE, default=False)
def compare(session: nox.Session) -> None:
    """Play what goes wrong around circuit breakers with ours and with others, in an environment that has them."""
    session.install("-e", ".[trio]", *group("peers"))
    session.run("python", "benchmarks/breaker_behaviour.py", *session.posargs)
