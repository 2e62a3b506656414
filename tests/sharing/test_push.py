"""`lit-align push`: what goes up, what never does, and how a broken upload goes on."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_align.commands.push import run as push
from lit_align.data import trajectories
from lit_align.data.preferences import PreferenceMeta, Preferences, write_preferences
from lit_align.errors import UserError
from lit_align.hub import source_of
from lit_align.models.agent import Agent
from lit_align.models.reward import RewardModel
from lit_align.sharing.scrub import refuse_secrets, relative, scrub
from lit_align.sharing.what import find
from tests.helpers import made_up, record, tiny_agent

ROOT = Path(__file__).parents[2]


@pytest.fixture
def a_run(tmp_path) -> Path:
    """What a stage leaves, as far as a push looks at it."""
    folder = tmp_path / "finetune"
    agent = tiny_agent()
    agent.info = {"stage": "finetune", "data": str(tmp_path / "recordings" / "good"), "wad": "/home/bob/doom/x.wad"}
    agent.save(folder / "agent")
    (folder / "config.yaml").write_text("seed: 0\n")
    return folder


def repo(hub, kind="model", name="alice/agent"):
    return hub.repos[kind, name]


def test_an_agent_goes_up_in_one_commit_with_what_is_listed(hub, a_run, card, capsys):
    push(str(a_run), "alice/agent", card=card, message="first")
    files = repo(hub).files
    assert set(files) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    assert files["model.safetensors"] == (a_run / "agent" / "model.safetensors").read_bytes()
    assert files["README.md"] == Path(card).read_bytes()
    assert repo(hub).messages == ["initial commit", "first"]
    said = capsys.readouterr().out
    size = (a_run / "agent" / "model.safetensors").stat().st_size
    assert re.search(rf"model.safetensors +{size / 1000:.1f} kB +.*finetune/agent/model.safetensors", said)
    commit = repo(hub).branches["main"]
    assert f"pushed as alice/agent@{commit}" in said
    assert source_of(a_run / "agent") == ("alice/agent", commit)


def test_a_dry_run_lists_all_and_asks_nobody(hub, a_run, card, capsys):
    (a_run / "agent" / ".env").write_text("HF_TOKEN=hf_" + "z" * 34)
    push(str(a_run), "alice/agent", card=card, dry_run=True)
    said = capsys.readouterr().out
    assert "# An agent" in said
    assert "3 files" in said
    assert "stays here: .env" in said
    assert "nothing was uploaded" in said
    assert hub.seen == []
    assert hub.repos == {}


def test_no_place_on_this_machine_goes_up(hub, a_run, tmp_path, card):
    Path(card).write_text(
        f"---\nlicense: mit\n---\nMade in {tmp_path}/finetune by `--init_from /scratch/bob/base/agent`.\n"
    )
    push(str(a_run), "alice/agent", card=card)
    files = repo(hub).files
    info = json.loads(files["config.json"])["info"]
    assert info == {"stage": "finetune", "data": "recordings/good", "wad": "doom/x.wad"}
    assert files["README.md"].decode().endswith("Made in finetune by `--init_from base/agent`.\n")


@pytest.mark.parametrize(
    "secret",
    [
        "hf_" + "a1B2" * 9,
        "ghp_" + "a1B2" * 9,
        "AKIA" + "ABCD1234" * 2,
        "-----BEGIN RSA PRIVATE KEY-----",
        "https://bob:hunter2@example.org/x",
        "wandb_api_key: 0123456789abcdef0123",
        '"password": "correct-horse"',
        "machine example.org login bob password hunter2",
        "--data.env_args.password hunter22222",
        "--trainer.logger.init_args.token abcdef0123456789abcdef",
        "`--token abcdefgh12345678`",
        "Authorization: Bearer abcdef1234567890",
        "wandb login " + "0f" * 20,
        "key " + "0f" * 20,
        '"password_of_world": "hunter22222"',
        "password=ALLCAPSPASS",
        "password=my_dog_rex99",
        "password=$ecret1",
        "password=your-mother!1",
        "password=<a>bcdefg",
        "password: true-love",
        '"password": "a,b,c,d"',
    ],
)
def test_secrets_are_refused_by_file_and_line_and_not_repeated(hub, a_run, card, secret):
    Path(card).write_text(f"---\nlicense: mit\n---\n\n{secret}\n")
    with pytest.raises(UserError, match="README.md, line 5, looks as if it held") as error:
        push(str(a_run), "alice/agent", card=card)
    assert secret.split()[-1] not in str(error.value)
    assert hub.writes == []


def test_a_secret_in_the_config_is_refused(hub, a_run, card):
    agent = Agent.load(a_run / "agent")
    agent.info["env_args"] = {"api_key": "0123456789abcdef"}
    agent.save(a_run / "agent")
    with pytest.raises(UserError, match="config.json, key info.env_args.api_key, .* a secret under its name"):
        push(str(a_run), "alice/agent", card=card)
    assert hub.writes == []


@pytest.mark.parametrize(
    "text",
    [
        "train/loss 0.3, 50 frames/s, and/or",
        "see https://huggingface.co/alice/agent/tree/main and docs/sharing.md",
        "lit-align evaluate alice/agent --env LitAlign/Jumppads-v0 --out outputs/eval",
        "</td><td>1 / 2</td>",
        "token: null, `HF_TOKEN=$TOKEN`, tokens: 123456789",
        "Agent.from_pretrained('alice/agent', token=token)",
        "tokens 5, token_id, token_id: 123456789, max_tokens: 128000, --max_tokens 128000",
        "commit " + "0f" * 20 + ", revision: " + "0f" * 20 + ", api " + "0f" * 32,
        "`alice/wandb-agent@" + "0f" * 20 + "`",
        "password: <your password>, token: ******, password=${NAME_X}, password: null, secret=xxxxxxxx",
        "token=your-token-here, token=os.environ['HF_TOKEN'], --token $HF_TOKEN",
        "s3://bucket/a/b, https://host/home/alice, alice/name, ~/mine/x",
    ],
)
def test_ordinary_text_is_left_alone(text):
    assert relative(text) == text
    refuse_secrets(text, "README.md")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("wad:/home/alice/clients/x.wad", "wad:clients/x.wad"),
        ("{a:/home/alice/s}", "{a:s}"),
        ("PATH:/home/alice", "PATH:~"),
        ("-I/home/alice/inc", "-Iinc"),
        ("file:/home/alice/x", "file:x"),
        ("//home/alice/x", "x"),
        ("C:/Users/alice/x", "x"),
        ("c:/users/alice/x", "c:x"),
        ("C:\\Users\\Alice Smith\\runs", "runs"),
        ("C:\\\\Users\\\\alice\\\\x", "x"),
        ("\\\\server\\share\\x", "share/x"),
        ("\\\\server\\Users\\alice\\x", "x"),
        ("/home/alice smith/runs/a", "runs/a"),
        ("/mnt/c/Users/alice/x", "x"),
        ("../../home/alice/x", "x"),
        ("x=/home/alice:/home/alice/b", "x=~:b"),
        ("sqlite:////home/alice/db", "sqlite:db"),
        ("wad:/scratch/d/x.wad", "wad:d/x.wad"),
    ],
)
def test_no_user_name_is_left_of_a_path_wherever_it_stands(text, left):
    assert relative(text) == relative(left) == left
    for content in (text, f"{text} --out /home/alice/b", [text], {text: 1}):
        clean = json.dumps(scrub(content)).lower()
        assert "alice" not in clean
        assert "smith" not in clean


@pytest.mark.parametrize("unit", ["a-", "a", "x/", "/", " a", "\\", " -a", "../", "/home ", "password", "a.", "token "])
def test_long_lines_are_read_in_time_that_grows_with_them(unit):
    # Where it grew with the square of the length, this took minutes.
    assert len(relative(unit * 40_000)) > 0
    refuse_secrets(unit * 40_000, "README.md")


@pytest.mark.parametrize(
    "words", [["--data.env_args.password", "hun2"], ["--token=abcd"], ["-x", "--api_key", "k e y"]]
)
def test_the_words_of_a_command_are_looked_at_one_by_one(hub, a_run, words):
    (a_run / "environment.json").write_text(json.dumps({"command": ["lit-align", "finetune", "fit", *words]}))
    with pytest.raises(UserError, match="environment.json of .*its command, looks as if it held") as error:
        push(str(a_run), "alice/agent")
    assert words[-1].rpartition("=")[2] not in str(error.value)
    assert hub.seen == []


def test_json_in_one_line_names_the_key():
    content = {"info": {"runs": [{"note": "x"}, {"note": "see --token abcdefgh1234"}]}}
    with pytest.raises(UserError, match="config.json, key info.runs.note, looks"):
        refuse_secrets(json.dumps(content), "config.json")
    refuse_secrets(json.dumps({"revision": "0f" * 20, "fingerprint": "0f" * 32, "password": None}), "config.json")


names = st.text("abcXYZ019_-", min_size=1, max_size=8)
json_of = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.lists(names, min_size=1, max_size=4).map(lambda p: "/" + "/".join(p)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(json_of)
def test_no_absolute_path_is_left_in_json_and_its_shape_stays(content):
    clean = scrub(content)
    assert '"/' not in json.dumps(clean)
    assert scrub(clean) == clean
    assert re.sub(r'"[^"]*"', '""', json.dumps(clean)) == re.sub(r'"[^"]*"', '""', json.dumps(content))


def test_a_branch_is_made_and_the_main_one_stays(hub, a_run, card):
    push(str(a_run), "alice/agent", card=card)
    main = repo(hub).branches["main"]
    tiny_agent(1).save(a_run / "agent")
    push(str(a_run), "alice/agent", card=card, revision="dev")
    assert repo(hub).branches["main"] == main
    dev = repo(hub).commits[repo(hub).branches["dev"]]
    assert dev["model.safetensors"] == (a_run / "agent" / "model.safetensors").read_bytes()


def test_private_and_again_when_nothing_has_changed(hub, a_run, card, capsys):
    push(str(a_run), "alice/agent", card=card, private=True)
    assert repo(hub).private
    commit, received = repo(hub).branches["main"], dict(hub.received)
    push(str(a_run), "alice/agent", card=card)
    assert f"nothing has changed since alice/agent@{commit}" in capsys.readouterr().out
    assert repo(hub).branches["main"] == commit
    assert hub.received == received


def test_a_card_of_the_owners_is_replaced_and_files_of_theirs_stay(hub, a_run, card):
    hub.put("alice/agent", {"README.md": b"# old", "notes.txt": b"mine"})
    push(str(a_run), "alice/agent", card=card)
    assert repo(hub).files["README.md"] == Path(card).read_bytes()
    assert repo(hub).files["notes.txt"] == b"mine"


@pytest.mark.parametrize(
    ("token", "to", "message"),
    [
        ("hf_" + "c" * 34, "alice/agent", "does not know your token; log in with `hf auth login`, or set HF_TOKEN"),
        ("hf_" + "b" * 34, "alice/agent", "your token may not do that with alice/agent"),
        (None, "alice/agent", "log in with `hf auth login`, or set HF_TOKEN"),
    ],
)
def test_who_may_not_write_is_told(hub, a_run, card, monkeypatch, token, to, message):
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=message):
        push(str(a_run), to, card=card)
    assert hub.stored == {}


def test_a_hub_that_is_down_is_told(hub, a_run, card):
    hub.fail("/api/repos/create", status=503)
    with pytest.raises(UserError, match="answered 503 for alice/agent: .*try again later"):
        push(str(a_run), "alice/agent", card=card)


def test_a_card_that_the_hub_refuses_is_told_before_anything_is_sent(hub, a_run, card):
    Path(card).write_text("---\nlicense:\n---\n# An agent\n")
    with pytest.raises(UserError, match='refuses this .*: Invalid metadata in README.md. - "license" must'):
        push(str(a_run), "alice/agent", card=card)
    assert hub.received == {}


def test_where_a_pickle_is_nothing_is_pushed(hub, a_run, card):
    hub.put("alice/agent", {"old.pkl": b"\x80"})
    with pytest.raises(UserError, match="alice/agent holds old.pkl, which can run code"):
        push(str(a_run), "alice/agent", card=card)
    assert hub.received == {}


def test_where_a_pickle_is_no_branch_is_made_and_the_owner_is_told(hub, a_run, card):
    hub.put("alice/agent", {"old.pkl": b"\x80"})
    with pytest.raises(UserError, match="remove it there first .or push to another name.; nothing was uploaded"):
        push(str(a_run), "alice/agent", card=card, revision="dev")
    assert list(repo(hub).branches) == ["main"]
    assert hub.writes == []


def test_a_hub_that_does_not_listen_is_told(hub, a_run, card, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="the Hub .http://127.0.0.1:9. cannot be reached") as error:
        push(str(a_run), "alice/agent", card=card)
    assert "broke off" not in str(error.value)


def test_out_may_be_a_link_to_a_folder_that_is_empty_or_not_there(hub, a_run, card, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    push(str(a_run), "alice/agent", card=card, out="link", dry_run=True)
    assert (tmp_path / "kept" / "README.md").is_file()
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("to", ["agent", "alice/agent@dev", "a/b/c", "../x"])
def test_names_that_are_none_are_refused(hub, a_run, card, to):
    with pytest.raises(UserError, match=r"no name on the Hub|names a revision"):
        push(str(a_run), to, card=card)
    assert hub.seen == []


def test_what_is_broken_is_not_pushed(hub, a_run, card, tmp_path):
    weights = a_run / "agent" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        push(str(a_run), "alice/agent", card=card)
    with pytest.raises(UserError, match="holds neither an agent"):
        push(str(tmp_path), "alice/agent", card=card)
    with pytest.raises(UserError, match="there is no folder 'nowhere'"):
        push("nowhere", "alice/agent", card=card)
    assert hub.writes == []


def test_a_run_that_has_not_ended_names_export(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="its run has not ended: 'lit-align export"):
        find(tmp_path / "run")


def test_an_upload_that_breaks_off_sends_only_the_missing_file_again(hub, tmp_path, card):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trajectories, "_SHARD_BYTES", 1)  # a shard for each episode
        folder = Path(record(tmp_path / "frames", [made_up(i, 30) for i in range(3)]))
    shards = sorted((folder / "data").glob("*.parquet"))
    assert len(shards) > 1
    sums = {hashlib.sha256(path.read_bytes()).hexdigest(): path.stat().st_size for path in shards}
    broken = list(sums)[-1]
    # As often as it is tried again (5 times), from the middle of the file.
    hub.fail(f"PUT /lfs/{broken}", after=sums[broken] // 2, times=6)
    with pytest.raises(UserError, match="broke off: .*do the same again to go on"):
        push(str(folder), "alice/frames", card=card)
    assert repo(hub, "dataset", "alice/frames").messages == ["initial commit"], "nobody meets half of it"
    assert set(hub.stored) == set(sums) - {broken}
    hub.received.clear()
    push(str(folder), "alice/frames", card=card)
    assert hub.received == {broken: sums[broken]}
    assert len(repo(hub, "dataset", "alice/frames").messages) == 2


@pytest.mark.slow
def test_a_push_that_was_killed_goes_on(hub, a_run, card, tmp_path):
    weights = (a_run / "agent" / "model.safetensors").read_bytes()
    oid = hashlib.sha256(weights).hexdigest()
    line = [sys.executable, "-m", "lit_align", "push", str(a_run), "alice/agent", "--card", card]
    environment = {
        **os.environ,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONPATH": str(ROOT),
    }
    process = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    hub.fail(f"PUT /lfs/{oid}", after=len(weights) // 2, times=1, then=process.kill)
    process.communicate(timeout=120)
    assert process.returncode == -9
    assert hub.stored == {}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert repo(hub).files["model.safetensors"] == weights
    assert f"pushed as alice/agent@{repo(hub).branches['main']}" in done.stdout


def test_large_files_go_in_parts(hub, a_run, card):
    weights = (a_run / "agent" / "model.safetensors").read_bytes()
    hub.multipart = len(weights) // 3
    push(str(a_run), "alice/agent", card=card)
    assert repo(hub).files["model.safetensors"] == weights
    assert sum(line.startswith("PUT") for line in hub.seen) == 4


def test_shards_that_are_gone_go_in_the_same_commit(hub, tmp_path, card):
    hub.put("alice/frames", {"data/train-00007.parquet": b"old", "mine.md": b"x"}, kind="dataset")
    folder = record(tmp_path / "frames", [made_up(0, 5)])
    push(folder, "alice/frames", card=card)
    found = repo(hub, "dataset", "alice/frames")
    assert set(found.files) == {"data/train-00000.parquet", "meta.json", "README.md", "mine.md"}
    assert len(found.messages) == 2


def test_preferences_name_their_trajectories(hub, tmp_path, card):
    frames = record(tmp_path / "frames", [made_up(i, 5) for i in range(2)])
    pairs = Preferences(np.array([0]), np.array([1]), annotator="rule")
    write_preferences(tmp_path / "deep" / "pairs", {"train": pairs}, PreferenceMeta(frames), "2026-01-01")
    push(str(tmp_path / "deep" / "pairs"), "alice/pairs", card=card)
    meta = json.loads(repo(hub, "dataset", "alice/pairs").files["meta.json"])
    assert meta["trajectories"] == "../frames"
    push(str(tmp_path / "deep" / "pairs"), "alice/pairs", card=card, trajectories="alice/frames")
    meta = json.loads(repo(hub, "dataset", "alice/pairs").files["meta.json"])
    assert meta["trajectories"] == "alice/frames"
    with pytest.raises(UserError, match="--trajectories is for preferences"):
        push(frames, "alice/frames", card=card, trajectories="alice/x")
    push(frames, "alice/frames", card=card)
    push(str(tmp_path / "deep" / "pairs"), "alice/pairs", card=card)
    meta = json.loads(repo(hub, "dataset", "alice/pairs").files["meta.json"])
    assert meta["trajectories"] == f"alice/frames@{repo(hub, 'dataset', 'alice/frames').branches['main']}"


def test_out_keeps_what_goes_up(hub, a_run, card, tmp_path):
    push(str(a_run), "alice/agent", card=card, out=str(tmp_path / "kept"))
    kept = {
        str(p.relative_to(tmp_path / "kept")): p.read_bytes() for p in (tmp_path / "kept").rglob("*") if p.is_file()
    }
    assert kept == {name: content for name, content in repo(hub).files.items() if name != ".gitattributes"}


def test_models_push_themselves(hub, card):
    agent = tiny_agent()
    commit = agent.push_to_hub("alice/agent", private=True, revision="dev", card=card)
    assert repo(hub).private
    found = Agent.from_pretrained("alice/agent", commit)
    assert all(torch.equal(v, found.state_dict()[k]) for k, v in agent.state_dict().items())
    model = RewardModel.from_agent(agent)
    model.push_to_hub("alice/reward", card=card, message="mine")
    assert repo(hub, name="alice/reward").messages[-1] == "mine"
    assert torch.equal(RewardModel.from_pretrained("alice/reward").head.weight, model.head.weight)


def test_the_card_that_is_made_goes_up_with_what_it_shows(hub, a_run):
    push(str(a_run), "alice/agent")
    files = repo(hub).files
    text = files["README.md"].decode()
    assert text.startswith("---\n")
    assert "alice/agent" in text
    shown = re.findall(r"\]\((?!https?:|#)([^)\s]+)\)", text)
    assert set(shown) <= set(files), "what the card shows is beside it"
