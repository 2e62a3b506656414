"""The package as a user gets it: wheel and sdist, installed with their dependencies away from the source tree.

`make test-wheel` runs these tests, or `LIT_ALIGN_TEST_WHEEL=1`: the dependencies are installed into an empty
environment, as `constraints.txt` pins them. `LIT_ALIGN_TEST_WHEEL=FOLDER` names an environment that has them already.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from lit_align.commands import COMMANDS, LISTS, PIPELINE, STAGES, VERBS

ASKED = os.environ.get("LIT_ALIGN_TEST_WHEEL", "")
pytestmark = pytest.mark.skipif(not ASKED, reason="minutes: make test-wheel")
ROOT = Path(__file__).parents[2]
EXTRAS = {"websockets", "onnx", "onnxruntime", "onnxscript", "tensorboard", "transformers"}
LIGHT = ("torch", "lightning", "numpy", "datasets", "huggingface_hub", "wandb", "jsonargparse", "gymnasium")
AGENT = """
from lit_align.models.agent import Agent
from lit_align.models.config import BackboneConfig
from lit_align.spaces import ActionCodec, gamepad_space
config = BackboneConfig(image_size=32, channels=2, width=8, layers=1, heads=2, context=4)
Agent(config, ActionCodec(gamepad_space())).save("agent")
"""


@dataclass
class Built:
    """A wheel from the tree, an sdist, and a wheel from that sdist."""

    wheel: Path
    sdist: Path
    again: Path


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("built")
    tree = folder / "tree"
    # A copy: a `build/` that is left from another day would go into the wheel.
    shutil.copytree(ROOT / "lit_align", tree / "lit_align", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    build(tree, folder / "sdist", "--sdist")
    sdist = next((folder / "sdist").glob("lit_align-*.tar.gz"))
    build(tree, folder / "wheel", "--wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    build(next((folder / "unpacked").iterdir()), folder / "again", "--wheel")
    return Built(next((folder / "wheel").glob("*.whl")), sdist, next((folder / "again").glob("*.whl")))


def build(tree: Path, out: Path, what: str) -> None:
    command = [sys.executable, "-m", "build", what, "--no-isolation", "--outdir", str(out), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


class Clean:
    """An environment without the source tree and without extras, and an empty folder to work in."""

    def __init__(self, folder: Path, work: Path) -> None:
        self.bin, self.work = folder / "bin", work
        keep = ("PATH", "LANG", "LC_ALL", "TMPDIR")
        self.environment = {name: os.environ[name] for name in keep if name in os.environ}
        self.environment |= {"HOME": str(work), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        program, *rest = words
        command = [str(self.bin / program), *rest]
        return subprocess.run(
            command, cwd=self.work, env=self.environment, capture_output=True, text=True, check=False, timeout=600
        )

    def align(self, *words: str) -> str:
        """What `lit-align WORDS` prints; it must succeed."""
        done = self.run("lit-align", *words)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        assert "Traceback" not in done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="session", params=["wheel", "sdist"])
def clean(request: pytest.FixtureRequest, built: Built, tmp_path_factory: pytest.TempPathFactory) -> Clean:
    folder = Path(ASKED)
    if ASKED == "1":
        folder = tmp_path_factory.getbasetemp() / "environment"  # dependencies are installed once for both
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        pip(python, "--constraint", str(ROOT / "constraints.txt"), str(built.wheel))
    pip(python, "--no-deps", "--force-reinstall", str(built.wheel if request.param == "wheel" else built.again))
    code = f"import importlib.util as u; print([n for n in {sorted(EXTRAS)} if u.find_spec(n)])"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert found == "[]", f"extras are installed: {found}"
    made = Clean(folder, tmp_path_factory.mktemp("work"))
    assert made.run("python", "-c", AGENT).returncode == 0
    return made


def pip(python: Path, *words: str) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *words]
    subprocess.run(command, check=True)


def contents(wheel: Path) -> dict[str, bytes]:
    """Files of a wheel; what lists them and tells how it was made is left out."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith(("RECORD", "WHEEL"))}


def test_the_sdist_builds_the_wheel_that_the_tree_builds(built: Built) -> None:
    assert contents(built.again) == contents(built.wheel)
    tracked = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "lit_align").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert tracked <= set(contents(built.wheel)), "files that the package has and the wheel lacks"
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "LICENSE", "pyproject.toml"} <= names
    assert not [name for name in names if name.startswith(("outputs", "shared", ".venv"))]


def test_the_package_is_the_installed_one(clean: Clean) -> None:
    done = clean.run("python", "-c", "import lit_align; print(lit_align.__file__, lit_align.__version__)")
    place, version = done.stdout.split()
    assert Path(place).is_relative_to(clean.bin.parent)
    assert clean.align("--version") == f"lit-align {version}\n"


def test_neither_import_nor_help_loads_anything_heavy(clean: Clean) -> None:
    """The untimed form of: import in 0.2 s, help in 0.5 s of CPU (`tools/bench/startup.py` has the clock)."""
    for code in ("import lit_align", "from lit_align.cli import main; main(['--help'])"):
        check = f"import sys; {code}; assert not (found := set(sys.modules) & set({LIGHT})), found"
        done = clean.run("python", "-c", check)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_answers_help(clean: Clean, verb: str) -> None:
    assert set(VERBS) == set(COMMANDS) | set(LISTS) | set(PIPELINE) | set(STAGES)
    assert "--help" in clean.align(verb, "--help")
    if verb in STAGES:
        assert "--trainer.max_epochs" in clean.align(verb, "fit", "--help")


def test_a_world_is_played_with_what_the_wheel_brings(clean: Clean) -> None:
    shutil.rmtree(clean.work / "play", ignore_errors=True)
    words = ("--players={goal: 1}", "--episodes=1", "--workers=1", "--env_args={size: 32, max_steps: 5}")
    assert "1 episodes" in clean.align("collect", "--out=play", *words)
    assert (clean.work / "play" / "meta.json").is_file()


def test_a_report_is_written_with_what_the_wheel_brings(clean: Clean) -> None:
    shutil.rmtree(clean.work / "seen", ignore_errors=True)
    words = ("--episodes=2", "--worlds=1", "--videos=1", "--env_args={max_steps: 5}")
    clean.align("evaluate", "agent", "--out=seen/eval_agent", *words)
    clean.align("report", "--run=seen", "--out=seen/report")
    assert (clean.work / "seen" / "report" / "index.html").is_file()


EXAMPLES = {
    "serve": ("serve", "agent"),
    "onnx": ("export", "agent", "--out=agent.onnx", "--format=onnx"),
    "play": ("play", "agent", "--window=true"),
    "vision": ("pretrain", "fit", "--model.backbone.encoder=pretrained", "--model.backbone.pretrained=google/vit"),
    "tensorboard": ("pretrain", "fit", "--tensorboard=true"),
}
TRAINING = ("--data.trajectories=[play]", "--data.batch_size=1", "--data.val_fraction=0", "--trainer.accelerator=cpu")


@pytest.mark.parametrize("extra", sorted(EXAMPLES))
def test_a_missing_extra_is_one_line_that_names_it(clean: Clean, extra: str) -> None:
    words = EXAMPLES[extra]
    if words[0] == "pretrain":
        if not (clean.work / "play").exists():
            test_a_world_is_played_with_what_the_wheel_brings(clean)
        sizes = ("--model.backbone.image_size=32",) if extra == "vision" else ()
        words = (*words, *TRAINING, *sizes, f"--out=run-{extra}")
    # The window's package comes with the island's engine as things are: it is hidden.
    hide = "sys.modules['pygame'] = None; " if extra == "play" else ""
    code = f"import sys; {hide}from lit_align.cli import main; sys.exit(main(sys.argv[1:]))"
    done = clean.run("python", "-c", code, *words)
    assert done.returncode == 2, done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert f"pip install 'lit-align[{extra}]'" in errors[0]
    assert "Traceback" not in done.stdout + done.stderr
