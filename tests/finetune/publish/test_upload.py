"""Sending and fetching through huggingface_hub's own client, against a hub that fails."""

import shutil

import pytest

from finetune.publish.upload import upload
from pretrain.checkpoint import find_checkpoint, load_checkpoint
from shards.errors import Stopped, UserError
from tests.finetune.publish.conftest import REPO
from tests.hub import READER, WRITER, Fault

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the client, at its own code


def send(folder, repo=REPO, private=False, token=WRITER):
    said = []
    return upload(folder, repo, private, token, said.append), said


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_sent_is_what_is_fetched(server, folder, opened):
    commit, said = send(folder)
    assert said == []
    assert server.repositories[REPO].files("main") == content(folder)
    assert server.repositories[REPO].private is False
    for place in (REPO, f"hf:{REPO}", f"hf:{REPO}@{commit}", f"{server.endpoint}/{REPO}/tree/{commit}"):
        again = load_checkpoint(place)
        assert again.digest == opened.digest
        weights, expected = again.task.state_dict(), opened.task.state_dict()
        assert all((weights[name] == expected[name]).all() for name in expected)
    fetched = {path.name for path in find_checkpoint(f"hf:{REPO}").iterdir()}
    assert fetched == {"model.safetensors", "config.yaml", "tokenizer.json", "state.json"}
    assert server.count("GET .*model.safetensors") == 1, "the cache is used"


def test_a_second_time_nothing_is_sent(server, folder):
    first, _ = send(folder)
    assert send(folder)[0] == first
    assert server.count("PUT /large/") == 1
    assert len(server.repositories[REPO].commits) == 2


def test_a_pinned_revision_stays(server, folder, opened):
    first, _ = send(folder)
    (folder / "README.md").write_text((folder / "README.md").read_text() + "\nmore\n")
    second, _ = send(folder)
    assert first != second
    assert find_checkpoint(f"hf:{REPO}@{first}").name == first
    assert find_checkpoint(REPO).name == second
    server.repositories.clear()
    assert load_checkpoint(f"hf:{REPO}@{first}").digest == opened.digest, "from the cache"


def test_private(server, folder, monkeypatch):
    send(folder, private=True)
    assert server.repositories[REPO].private is True
    monkeypatch.setenv("HF_TOKEN", READER)
    load_checkpoint(f"hf:{REPO}")
    shutil.rmtree(find_checkpoint(REPO).parents[1])
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="neither here nor on the hub, or HF_TOKEN does not open it"):
        load_checkpoint(f"hf:{REPO}")


@pytest.mark.parametrize(
    "fault",
    [
        Fault("POST /api/repos/create", 503, 2),
        Fault("POST .*/preupload/", 0),
        Fault("PUT /large/", 0),
        Fault("PUT /large/", 500),
        Fault("POST .*/commit/", 503, 3),
        Fault("POST .*/commit/", 0, 2),
        Fault("POST /api/validate-yaml", 504),
    ],
    ids=lambda fault: f"{fault.pattern.split('/')[-2]} {fault.status}",
)
def test_faults_that_pass(fault, server, folder):
    server.faults = [fault]
    send(folder)
    assert fault.times == 0, "it happened"
    assert server.repositories[REPO].files("main") == content(folder)


def test_a_hub_that_stays_away_stops_and_a_second_call_goes_on(server, folder):
    server.faults = [Fault("POST .*/commit/", 503, 99)]
    with pytest.raises(Stopped, match="the same command goes on where this one stopped"):
        send(folder)
    assert server.repositories[REPO].files("main") == {}, "readers see nothing before the commit"
    sent = server.count("PUT /large/")
    server.faults = []
    send(folder)
    assert server.count("PUT /large/") == sent, "large files are not sent again"
    assert server.repositories[REPO].files("main") == content(folder)


@pytest.mark.parametrize(
    ("token", "repo", "message"),
    [
        ("hf_" + "x" * 34, REPO, "the hub does not know this token; set HF_TOKEN"),
        (READER, REPO, "the token may not write there"),
        (WRITER, "grace/kites", "the token may not write there"),
    ],
)
def test_who_may_not(token, repo, message, server, folder):
    with pytest.raises(UserError, match=message):
        send(folder, repo, token=token)
    assert server.count("POST .*/commit/") == 0


def test_a_card_that_the_hub_refuses(server, folder):
    (folder / "README.md").write_text("---\ntags: []\n---\n")
    with pytest.raises(UserError, match=r"refused: Invalid metadata in README.md"):
        send(folder)
    assert server.count("PUT") == 0


def test_fetching_in_trouble(server, folder, tmp_path):
    with pytest.raises(UserError, match="neither here nor on the hub"):
        load_checkpoint("hf:ada/nothing")
    send(folder)
    with pytest.raises(UserError, match=r"\(=ada/kites@v9\): the repository has no such revision"):
        load_checkpoint(f"hf:{REPO}@v9")
    server.faults = [Fault("GET .*/resolve/.*safetensors", 0)]
    load_checkpoint(f"hf:{REPO}")
    assert server.faults[0].times == 0, "a cut download goes on"
    shutil.rmtree(tmp_path / "cache")
    server.faults = [Fault("GET /api/models/ada/kites", 500, 99)]
    with pytest.raises(Stopped, match="ada/kites@main could not be fetched"):
        load_checkpoint(f"hf:{REPO}")


def test_a_folder_without_a_checkpoint(server, folder):
    (folder / "state.json").unlink()
    send(folder)
    with pytest.raises(UserError, match="must be a checkpoint folder"):
        load_checkpoint(f"hf:{REPO}")
