"""Which places are on a hub, and at which revision."""

import pytest

from pretrain.hub import HubPlace, hub_place
from shards.errors import UserError


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("ada/kites", HubPlace("ada/kites", "main")),
        ("ada/kites@v1.0", HubPlace("ada/kites", "v1.0")),
        ("hf:ada/kites", HubPlace("ada/kites", "main")),
        ("hf:ada/kites@refs/pr/1", HubPlace("ada/kites", "refs/pr/1")),
        ("https://hub.example/ada/kites/tree/abc123", HubPlace("ada/kites", "abc123", "https://hub.example")),
        ("https:/hub.example:80/ada/kites/tree/abc", HubPlace("ada/kites", "abc", "https://hub.example:80")),
        ("kites", None),
        ("./ada/kites", None),
        ("/ada/kites", None),
        ("runs/first/checkpoints/step-1", None),
        ("../kites", None),
    ],
)
def test_places(place, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_place(place) == expected
    if expected:
        commit = "c" * 40
        assert hub_place(expected.pinned(commit)) == HubPlace(expected.repo, commit, expected.endpoint)


def test_what_lies_here_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ada").mkdir()
    assert hub_place("ada/kites") is None, "a mistyped local path is not looked for elsewhere"
    assert hub_place("hf:ada/kites") == HubPlace("ada/kites", "main")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("https://hub.example/ada/kites", "must name a revision: https://HOST/USER/NAME/tree/REVISION"),
        ("hf:kites", "must have the form hf:USER/NAME"),
        ("hf:ada/kites/more", "must have the form hf:USER/NAME"),
    ],
)
def test_refused(place, message):
    with pytest.raises(UserError, match=message):
        hub_place(place)
