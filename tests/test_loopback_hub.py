"""The loopback Hub itself: calls of the real client have the same results as on the Hub."""

import hashlib
import os
import subprocess

import huggingface_hub
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from loopback_hub import Fault
from loopback_hub.client import CLIENT_VERSION

README = "---\nlicense: mit\ntags: [timm]\nlibrary_name: timm\n---\n# A model\n"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "published"
    (folder / "runs").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(os.urandom(5000))
    (folder / "config.json").write_text("{}")
    (folder / "runs" / "metrics.jsonl").write_text("{}\n")
    (folder / "README.md").write_text(README)
    return folder


@pytest.fixture
def api(hub):
    hub.log_in(hub.add_user("ada", orgs=("acme",)))
    api = HfApi()
    api.create_repo("ada/model")
    yield api
    assert not hub.unknown


def test_users(hub, api):
    assert api.whoami()["name"] == "ada"
    hub.log_in("hf_nobodys")
    with pytest.raises((HfHubHTTPError, OSError), match="Invalid user token"):  # the second before 1.0
        api.whoami()


def test_repositories(hub, api):
    assert api.create_repo("acme/model", private=True).repo_id == "acme/model"
    assert api.create_repo("acme/model", exist_ok=True).repo_id == "acme/model"
    with pytest.raises(HfHubHTTPError, match="already created"):
        api.create_repo("acme/model")
    with pytest.raises(HfHubHTTPError, match="rights"):
        api.create_repo("eve/model")
    hub.log_out()
    assert api.repo_exists("ada/model")
    assert not api.repo_exists("acme/model")
    hub.log_in(hub.add_user("acme-fan", orgs=("acme",)))
    api.update_repo_settings("acme/model", private=False)
    hub.log_out()
    assert api.repo_exists("acme/model")
    hub.log_in(hub.add_user("ada"))
    api.delete_repo("ada/model")
    assert not api.repo_exists("ada/model")
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("ada/model")


@pytest.mark.parametrize("part_size", [None, 1000])
def test_upload_and_download(hub, api, folder, part_size):
    hub.part_size = part_size
    commit = api.upload_folder(repo_id="ada/model", folder_path=folder)
    assert hub.files("ada/model") == {"model.safetensors", "config.json", "runs/metrics.jsonl", "README.md"}
    for path in hub.files("ada/model"):
        assert hub.read("ada/model", path) == (folder / path).read_bytes()
    assert sum(request.method == "PUT" for request in hub.requests) == (5 if part_size else 1)
    assert api.upload_folder(repo_id="ada/model", folder_path=folder).oid == commit.oid  # nothing has changed
    snapshot = huggingface_hub.snapshot_download("ada/model")
    assert snapshot.endswith(commit.oid)
    assert all((folder / path).read_bytes() == content for path, content in cached_by_path(hub).items())
    assert not any(request.token for request in hub.requests if request.server == "storage")


def cached_by_path(hub):
    files = {name.split("/", 3)[3]: content for name, content in hub.cached().items()}
    files.pop(".gitattributes")
    assert files
    return files


def test_metadata(hub, api, folder):
    commit = api.upload_folder(repo_id="ada/model", folder_path=folder)
    info = api.model_info("ada/model", files_metadata=True)
    sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    weights = next(sibling for sibling in info.siblings if sibling.rfilename == "model.safetensors")
    assert (info.sha, info.card_data.license, weights.size, weights.lfs.sha256) == (commit.oid, "mit", 5000, sha256)
    tree = {entry.path: entry for entry in api.list_repo_tree("ada/model", recursive=True)}
    assert set(tree) == {*hub.files("ada/model"), ".gitattributes", "runs"}
    assert tree["model.safetensors"].lfs.sha256 == sha256
    assert {entry.path for entry in api.list_repo_tree("ada/model", "runs")} == {"runs/metrics.jsonl"}
    assert [entry.path for entry in api.get_paths_info("ada/model", ["config.json", "none"])] == ["config.json"]
    assert [commit.title for commit in api.list_repo_commits("ada/model")][1] == "initial commit"
    assert api.file_exists("ada/model", "config.json")
    assert not api.file_exists("ada/model", "none.json")


def test_hashes_are_those_of_git(hub, api, folder, tmp_path):
    """A git repository with the same files has the same tree hash."""
    api.upload_file(path_or_fileobj=b"text", path_in_repo="runs/a.txt", repo_id="ada/model")
    api.upload_file(path_or_fileobj=b"more", path_in_repo="runs.txt", repo_id="ada/model")
    work = tmp_path / "work"
    (work / "runs").mkdir(parents=True)
    (work / ".gitattributes").write_bytes(hub.read("ada/model", ".gitattributes"))
    (work / "runs" / "a.txt").write_text("text")
    (work / "runs.txt").write_text("more")
    try:
        for command in (["init", "-q"], ["-c", "core.autocrlf=false", "add", "."]):
            subprocess.run(["git", *command], cwd=work, check=True)
        tree = subprocess.run(["git", "write-tree"], cwd=work, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError:
        pytest.skip("git is not installed")
    from loopback_hub.store import tree_hash

    assert tree_hash(hub.repos["ada/model"].find("main").files) == tree.strip()


def test_branches_tags_and_pull_requests(hub, api, folder):
    first = api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="ada/model")
    api.create_tag("ada/model", tag="v1")
    api.create_branch("ada/model", branch="dev")
    api.upload_file(path_or_fileobj=b"[]", path_in_repo="config.json", repo_id="ada/model", revision="dev")
    pull = api.upload_folder(repo_id="ada/model", folder_path=folder, create_pr=True)
    assert pull.pr_revision == "refs/pr/1"
    refs = api.list_repo_refs("ada/model", include_pull_requests=True)
    assert [(tag.name, tag.target_commit) for tag in refs.tags] == [("v1", first.oid)]
    assert [branch.name for branch in refs.branches] == ["main", "dev"]
    assert [pull.target_commit for pull in refs.pull_requests] == [pull.oid]
    contents = [hub.read("ada/model", "config.json", revision) for revision in ("v1", "dev", "main", first.oid)]
    assert contents == [b"{}", b"[]", b"{}", b"{}"]
    assert "model.safetensors" not in hub.files("ada/model")
    assert api.get_discussion_details("ada/model", 1).status == "open"
    api.merge_pull_request("ada/model", 1)
    assert "model.safetensors" in hub.files("ada/model")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("ada/model", revision="v2")
    with pytest.raises(HfHubHTTPError, match="already exists"):
        api.create_tag("ada/model", tag="v1")
    api.delete_tag("ada/model", tag="v1")
    assert not api.list_repo_refs("ada/model").tags


def test_a_commit_on_an_old_parent_is_refused(hub, api):
    first = api.upload_file(path_or_fileobj=b"1", path_in_repo="a", repo_id="ada/model")
    api.upload_file(path_or_fileobj=b"2", path_in_repo="a", repo_id="ada/model")
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        api.create_commit("ada/model", [CommitOperationAdd("b", b"3")], commit_message="late", parent_commit=first.oid)
    api.create_commit("ada/model", [CommitOperationDelete("a")], commit_message="delete")
    assert hub.files("ada/model") == set()


def test_metadata_of_cards_is_checked(hub, api):
    with pytest.raises(ValueError, match="license"):
        api.upload_file(
            path_or_fileobj=README.replace("mit", "my own").encode(), path_in_repo="README.md", repo_id="ada/model"
        )
    if CLIENT_VERSION >= (1, 0):  # earlier clients always ask huggingface.co
        huggingface_hub.ModelCard(README).validate()
        index = "model-index:\n- name: a\n  results:\n  - task: {type: image-classification}\n"
        with pytest.raises(ValueError, match="dataset"):
            huggingface_hub.ModelCard(README.replace("license", f"{index}license")).validate()


def test_who_may_write(hub, api):
    for token, words in (
        (hub.add_user("ada", role="read"), "write token"),
        (hub.add_user("eve"), "rights"),
        (None, "401"),
    ):
        hub.log_in(token) if token else hub.log_out()
        with pytest.raises(HfHubHTTPError, match=words):
            api.upload_file(path_or_fileobj=b"x", path_in_repo="a.safetensors", repo_id="ada/model")
    assert hub.files("ada/model") == set()
    hub.log_in(hub.add_user("eve"))
    pull = api.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id="ada/model", create_pr=True)
    assert hub.read("ada/model", "a.txt", pull.pr_revision) == b"x"


@pytest.mark.parametrize("fault", [Fault.cut_upload(100), Fault.server_error().on("PUT", "^/upload/")])
def test_uploads_are_retried(hub, api, folder, fault):
    fault = hub.fail(fault)
    api.upload_folder(repo_id="ada/model", folder_path=folder)
    assert fault.hits == 1
    assert hub.read("ada/model", "model.safetensors") == (folder / "model.safetensors").read_bytes()


def test_nothing_is_committed_when_an_upload_fails(hub, api, folder):
    hub.fail(Fault.server_error().on("PUT", "^/upload/"), times=None)
    with pytest.raises(RuntimeError, match=r"model\.safetensors"):
        api.upload_folder(repo_id="ada/model", folder_path=folder)
    assert hub.files("ada/model") == set()
    assert len(hub.waits) == 5


def test_lost_answer(hub, api):
    """The commit was made, but the client does not learn of it."""
    hub.fail(Fault.lost_answer().on("POST", "/commit/"))
    with pytest.raises(Exception, match=r"[Dd]isconnected|closed|aborted|reset"):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id="ada/model")
    assert hub.files("ada/model") == {"a.txt"}
