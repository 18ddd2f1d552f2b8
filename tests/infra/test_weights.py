"""Weights: what counts, what is refused and in which words, what is fetched, and that gigabytes are hashed once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import Loopback, loopback
from safetensors.numpy import save

from rwkvfusion.infra import hashes
from rwkvfusion.infra.hashes import file_hashes
from rwkvfusion.infra.weights import Checkpoint, HubModel, MissingWeightsError, Weights, WeightsError, absolute_model

MODEL, COMMIT, OTHER = "owner/tiny", "1a" * 20, "2b" * 20
TENSORS = save({"a": np.arange(64, dtype=np.float32)})
FILES = {
    "config.json": b'{"model_type": "florence2"}',
    "tokenizer.json": b"{}",
    "merges.txt": b"a b",
    "spiece.model": b"\0\1",
    "model.safetensors": TENSORS,
}
BESIDE = {
    "README.md": b"words",
    "readme.txt": b"more words",
    "._config.json": b"litter",
    "pytorch_model.bin": b"pickle",
    "onnx/config.json": b"{}",
}


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches of its own, and no setting from outside."""
    monkeypatch.setenv("RWKVFUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    """A hub on this machine in place of the real one."""
    from huggingface_hub import constants

    with loopback() as site:
        monkeypatch.setattr(constants, "ENDPOINT", site.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{site.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        yield site


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def snapshot(tmp_path: Path, files: dict[str, bytes], commit: str = COMMIT) -> Path:
    return write(tmp_path / "hub" / "models--owner--tiny" / "snapshots" / commit, files)


def refusal(call: Callable[[], object], *words: str, kind: type[WeightsError] = WeightsError) -> str:
    """The message of an error of just this kind: one line that has all of `words`."""
    with pytest.raises(WeightsError) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is kind
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message
    return message


def age(*files: Path) -> None:
    """As if last changed a minute ago."""
    for file in files:
        old = file.stat().st_mtime_ns - 60_000_000_000
        os.utime(file, ns=(old, old))


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# Names.


def test_absolute_model_of_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "owner" / "tiny").mkdir(parents=True)
    (tmp_path / "sam.pth").touch()
    expected = {
        "./x": tmp_path / "x",
        "../x": tmp_path.parent / "x",
        "~/x": tmp_path / "home" / "x",
        "/x/y/": Path("/x/y"),
        "file:///x": Path("/x"),
        "owner/tiny": tmp_path / "owner" / "tiny",
        "sam.pth": tmp_path / "sam.pth",
    }
    assert {given: absolute_model(given) for given in expected} == {
        given: str(path) for given, path in expected.items()
    }
    for name in ("owner/other", "t5-base", "vit_h", "https://host/a.pth?b=1", "s3://bucket/a.pth", ""):
        assert absolute_model(name) == name


@given(st.text(max_size=30) | st.from_regex(r"(file:/|\.|~|/|s3:/|\w+)(/[\w.]+){0,3}", fullmatch=True))
def test_absolute_model_is_absolute_or_as_given_and_final(model: str) -> None:
    once = absolute_model(model)
    assert once == model or os.path.isabs(once)
    assert absolute_model(once) == once


# What counts.


def test_the_hash_is_what_sha256sum_gives_and_names_no_path(tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny", FILES | BESIDE)
    found = HubModel(str(folder)).find()
    listed = subprocess.run(
        f"sha256sum {shlex.join(FILES)} | sort | sha256sum",
        shell=True,
        cwd=folder,
        env={**os.environ, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.identity() == {"model": "tiny", "revision": None, "sha256": listed.stdout.split()[0]}
    assert found.path == folder
    there = write(tmp_path / "elsewhere" / "tiny", FILES)
    assert HubModel(str(there)).find().identity() == found.identity()


@pytest.mark.parametrize("name", [*FILES, *BESIDE, "added.json"])
def test_what_shapes_the_output_changes_the_hash_and_nothing_else(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "tiny", FILES | BESIDE)
    before = HubModel(str(folder)).find()
    changed = {"config.json": b'{"model_type": "t5"}', "model.safetensors": save({"a": np.ones(64, dtype=np.float32)})}
    write(folder, {name: changed.get(name, b"[1]")})
    after = HubModel(str(folder)).find()
    assert (after != before) == (name not in BESIDE)


def test_weights_in_several_files(tmp_path: Path) -> None:
    names = [f"model-0000{i}-of-00002.safetensors" for i in (2, 1)]
    parts = {name: save({name: np.full(3, i, dtype=np.float32)}) for i, name in enumerate(names)}
    index = json.dumps({"weight_map": {"b": names[0], "a": names[1], "c": names[1]}}).encode()
    rest = {"config.json": FILES["config.json"], "model.safetensors.index.json": index}
    folder = write(tmp_path / "tiny", rest | parts)
    lines = "".join(sorted(f"{sha(data)}  {name}\n" for name, data in parts.items()))
    HubModel(str(folder), sha256=sha(lines.encode())).find()
    refusal(lambda: HubModel(str(folder), sha256=sha(b"")).find(), "2 weight files", sha(b""), sha(lines.encode()))
    (folder / names[1]).unlink()
    refusal(HubModel(str(folder)).find, f"has no {names[1]}")


def test_weights_of_two_machines_must_be_equal() -> None:
    mine, theirs = Weights(Path("/a"), "tiny", COMMIT, "1" * 64), Weights(Path("/b"), "their", None, "2" * 64)
    mine.must_equal(dataclasses.replace(theirs, sha256=mine.sha256))
    refusal(lambda: mine.must_equal(theirs), "/a", "tiny", "their", "1" * 12, "2" * 12)


# What is refused.


@pytest.mark.parametrize(
    ("files", "settings", "words"),
    [
        ({}, {}, ["there is no folder"]),
        ({"config.json": None}, {}, ["has no config.json"]),
        ({"model.safetensors": None}, {}, ["has no model.safetensors"]),
        ({"model.safetensors": None, "pytorch_model.bin": b"x"}, {}, ["has no model.safetensors", "not loaded"]),
        ({"model.safetensors": None, "model.safetensors.index.json": b"[]"}, {}, ["index.json", "damaged"]),
        ({"model.safetensors": b"version https://git-lfs.github.com/spec/v1\noid"}, {}, ["git-lfs"]),
        ({"model.safetensors": b"<html>Sign in</html>"}, {}, ["damaged, cut off"]),
        ({"config.json": b"{"}, {}, ["config.json is damaged"]),
        ({"config.json": b"\xff[]"}, {}, ["config.json is damaged"]),
        ({"config.json": b"{}"}, {"types": frozenset({"t5"})}, ["caption.model needs t5", "without model_type"]),
        ({"config.json": b'{"model_type": ["t5"]}'}, {"types": frozenset({"t5"})}, ["without model_type"]),
        ({"a.txt": b""}, {"types": frozenset({"t5", "bert"})}, ["needs bert or t5", "is a 'florence2' model"]),
        ({"a.txt": b""}, {"revision": COMMIT}, ["caption.revision", "local folder"]),
        ({"a.txt": b""}, {"sha256": "abc"}, ["caption.sha256: 'abc' is not 64 hexadecimal digits"]),
        (
            {"a.txt": b""},
            {"sha256": "0" * 64},
            ["caption.sha256", "0" * 64, sha(TENSORS), "damaged", "another model's"],
        ),
    ],
)
def test_a_folder_that_will_not_do(
    tmp_path: Path, files: dict[str, bytes | None], settings: dict[str, Any], words: list[str]
) -> None:
    kept = {name: data for name, data in {**FILES, **files}.items() if data is not None} if files else {}
    folder = write(tmp_path / "tiny", kept)
    model = HubModel(str(folder), option="caption.model", **settings)
    message = refusal(model.find, *words)
    assert message.startswith("caption.")
    assert refusal(model.fetch) == message  # the network would not help


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny", FILES)
    for size in range(len(TENSORS)):
        (folder / "model.safetensors").write_bytes(TENSORS[:size])
        refusal(HubModel(str(folder)).find, "model.safetensors", "cut off", "copy it anew")


def test_weights_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "tiny", FILES)

    def fail(*args: object) -> None:
        raise PermissionError(13, "Permission denied", str(folder / "model.safetensors"))

    monkeypatch.setattr(hashes.hashlib, "file_digest", fail)
    refusal(HubModel(str(folder)).find, "cannot read", "model.safetensors", "Permission denied")
    refusal(Checkpoint(str(folder / "merges.txt")).find, "cannot read", "merges.txt", "Permission denied")


@pytest.mark.parametrize("model", ["owner/tiny/more", "https://huggingface.co/owner/tiny", "owner tiny", ""])
def test_what_is_neither_a_folder_nor_a_hub_id(model: str) -> None:
    refusal(HubModel(model, COMMIT).find, repr(model), "neither a folder here nor a hub id")


# The hub's cache.


def test_a_missing_model_names_the_commands_and_what_is_there(tmp_path: Path) -> None:
    model = HubModel(MODEL, COMMIT, option="caption.model")
    kind = MissingWeightsError
    words = ["caption.model", COMMIT, "rwkvfusion fetch RECIPE", f"hf download {MODEL} --revision {COMMIT}"]
    refusal(model.find, *words, "not on this machine", str(tmp_path / "hub"), kind=kind)
    snapshot(tmp_path, FILES, OTHER)
    refusal(model.find, *words, f"here is {OTHER}", kind=kind)
    folder = snapshot(tmp_path, {"config.json": FILES["config.json"]})
    refusal(model.find, *words, "incomplete", "without model.safetensors", kind=kind)
    snapshot(tmp_path, FILES)
    assert model.find().path == folder
    assert model.find().identity() == {**HubModel(str(folder)).find().identity(), "model": MODEL, "revision": COMMIT}


@pytest.mark.parametrize("revision", [None, "main", COMMIT[:7]])
def test_a_revision_is_a_full_commit(tmp_path: Path, revision: str | None) -> None:
    model = HubModel(MODEL, revision, option="caption.model")
    assert "on this machine" not in refusal(model.find, "caption.revision", "40 digits")
    snapshot(tmp_path, FILES)
    write(tmp_path / "hub" / "models--owner--tiny" / "refs", {revision or "main": COMMIT.encode()})
    refusal(model.fetch, "caption.revision", f"on this machine {revision or 'main'} is {COMMIT}")


# Fetching from a hub.


def test_fetch_takes_what_counts_once(site: Loopback, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    site.models[MODEL, COMMIT] = FILES | BESIDE
    site.models[MODEL, OTHER] = FILES
    model = HubModel(MODEL, COMMIT, sha(TENSORS), frozenset({"florence2"}))
    said: list[str] = []
    found = model.fetch(said.append)
    assert {path.name for path in found.path.rglob("*")} == {*FILES, "readme.txt", "._config.json"}
    assert found.sha256 == HubModel(str(write(tmp_path / "copy", FILES))).find().sha256
    assert said == [f"model: downloading {MODEL} at revision {COMMIT} from {site.url}"]

    site.asked.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert model.fetch() == model.find() == found
    other = dataclasses.replace(model, revision=OTHER)
    refusal(other.fetch, "HF_HUB_OFFLINE is set", f"here is {COMMIT}", kind=MissingWeightsError)
    assert site.asked == []


def test_fetch_goes_on_where_it_was_interrupted(site: Loopback) -> None:
    site.models[MODEL, COMMIT] = FILES
    large = f"/large/{sha(TENSORS)}"
    site.broken[large] = 403
    refusal(HubModel(MODEL, COMMIT).fetch, "could not download", MODEL)
    refusal(HubModel(MODEL, COMMIT).find, "incomplete", "without model.safetensors", kind=MissingWeightsError)

    del site.broken[large]
    site.cut[large] = 1
    site.asked.clear()
    assert HubModel(MODEL, COMMIT).fetch().revision == COMMIT
    assert site.asked.count(f"GET {large}") == 2
    assert not any("tokenizer" in request for request in site.asked)


def test_a_tokenizer_that_did_not_arrive_is_missed(site: Loopback) -> None:
    site.models[MODEL, COMMIT] = FILES
    found = HubModel(MODEL, COMMIT).fetch()
    (found.path / "tokenizer.json").unlink()
    refusal(HubModel(MODEL, COMMIT).find, "incomplete", "tokenizer", kind=MissingWeightsError)
    assert HubModel(MODEL, COMMIT).fetch() == found


def test_the_hub_s_refusals(site: Loopback, tmp_path: Path) -> None:
    site.models[MODEL, COMMIT] = FILES
    site.models["owner/pickles", COMMIT] = {"config.json": b"{}", "pytorch_model.bin": b""}
    site.models["owner/other", COMMIT] = {"model.safetensors": TENSORS}
    site.models["owner/gated", COMMIT] = FILES
    site.gated.add("owner/gated")
    refusal(HubModel(MODEL, OTHER).fetch, f"{MODEL} has no revision {OTHER}", "commits/main")
    refusal(HubModel("owner/nowhere", COMMIT).fetch, "no model owner/nowhere", "hf auth login")
    refusal(HubModel("owner/gated", COMMIT).fetch, "owner/gated is gated", "hf auth login")
    refusal(HubModel("owner/pickles", COMMIT).fetch, "has no model.safetensors on the hub", "not loaded")
    refusal(HubModel("owner/other", COMMIT).fetch, "has no config.json on the hub")
    site.broken[f"/api/models/{MODEL}/revision/{COMMIT}"] = 403
    refusal(HubModel(MODEL, COMMIT).fetch, "could not download", MODEL)
    snapshot(tmp_path, {"config.json": b"{}"})
    refusal(HubModel(MODEL, COMMIT).fetch, "could not download", MODEL)


def test_fetch_without_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refusal(HubModel(MODEL, COMMIT).fetch, "could not download", "http://127.0.0.1:9")


def test_a_user_s_process_and_the_commands_it_is_told(
    site: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing replaced, only the variables that users set; damage in the cache is found and repaired."""
    site.models[MODEL, COMMIT] = FILES | BESIDE
    monkeypatch.delenv("HF_HUB_CACHE")
    env = os.environ | {"HF_ENDPOINT": site.url, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1"}
    program = (
        "from rwkvfusion.infra.weights import HubModel, WeightsError\n"
        f"try: print(HubModel({MODEL!r}, {COMMIT!r}).fetch().path)\n"
        "except WeightsError as error: print(error)"
    )

    def fetch(**more: str) -> str:
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=env | more, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.strip()

    def follow(message: str) -> None:
        command = next(part for part in message.split("`") if part.startswith("hf download"))
        words = [str(Path(sys.executable).with_name("hf")), *shlex.split(command)[1:]]
        subprocess.run(words, env=env, capture_output=True, timeout=60, check=True)

    message = fetch(TRANSFORMERS_OFFLINE="1")
    assert "TRANSFORMERS_OFFLINE is set" in message
    assert site.asked == []
    follow(message)
    site.asked.clear()
    folder = Path(fetch())
    assert site.asked == []
    assert folder.is_relative_to(tmp_path / "hub")
    assert folder.joinpath("model.safetensors").read_bytes() == TENSORS

    weights = (folder / "model.safetensors").resolve()
    weights.chmod(0o644)
    weights.write_bytes(TENSORS[:-4])
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    follow(refusal(HubModel(MODEL, COMMIT).fetch, "cut off", "--force-download"))
    assert HubModel(MODEL, COMMIT).find().path == folder
    assert weights.read_bytes() == TENSORS


def test_weights_that_are_not_what_the_hub_said(site: Loopback) -> None:
    site.models[MODEL, COMMIT] = FILES
    other = save({"a": np.ones(64, dtype=np.float32)})
    assert len(other) == len(TENSORS)
    site.files[f"/large/{sha(TENSORS)}"] = other  # of the right length, which is all that the hub's client checks
    refusal(HubModel(MODEL, COMMIT).fetch, "model.safetensors is damaged", "--force-download")


# Checkpoints.


def test_a_checkpoint_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, {"sam.pth": b"tensors"}) / "sam.pth"
    expected = Weights(path, "sam.pth", None, sha(b"tensors"))
    for location in ("sam.pth", "./sam.pth", str(path), path.as_uri()):
        assert Checkpoint(location).find() == expected
        assert Checkpoint(location, sha(b"tensors")).fetch() == expected
    option = "segment.checkpoint"
    refusal(Checkpoint("sam.pth", "0" * 64, option).fetch, "segment.sha256", "0" * 64, sha(b"tensors"), "copy it anew")
    refusal(Checkpoint("no.pth", option=option).fetch, option, str(tmp_path / "no.pth"), "does not exist")
    refusal(Checkpoint(str(tmp_path), option=option).fetch, option, "is a folder")
    refusal(Checkpoint("sam.pth", "xyz", option).find, "segment.sha256", "64 hexadecimal")
    refusal(Checkpoint("https://host/sam.pth?secret", option=option).find, "segment.sha256", "from a URL needs it")


DATA = np.random.default_rng(0).bytes(6_000_000)  # more than a client reads ahead


def test_a_checkpoint_from_a_url(site: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.files["/a/sam%.pth"] = DATA
    checkpoint = Checkpoint(f"{site.url}/a/sam%25.pth?signature=secret", sha(DATA), "segment.checkpoint")
    missing = ["segment.checkpoint", f"{site.url}/a/sam%25.pth", "not on this machine", "rwkvfusion fetch RECIPE"]
    assert "secret" not in refusal(checkpoint.find, *missing, kind=MissingWeightsError)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refusal(checkpoint.fetch, *missing[:-1], "HF_HUB_OFFLINE is set", kind=MissingWeightsError)
    assert site.asked == []

    monkeypatch.delenv("HF_HUB_OFFLINE")
    said: list[str] = []
    found = checkpoint.fetch(said.append)
    kept = tmp_path / "cache" / "checkpoints" / sha(DATA) / "sam%.pth"
    assert found == Weights(kept, "sam%.pth", None, sha(DATA))
    assert said == [f"segment.checkpoint: downloading {site.url}/a/sam%25.pth"]

    site.asked.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert checkpoint.fetch() == checkpoint.find() == found
    assert site.asked == []

    monkeypatch.delenv("HF_HUB_OFFLINE")
    kept.write_bytes(DATA[:-1])
    refusal(checkpoint.find, "is damaged", "rwkvfusion fetch RECIPE", kind=MissingWeightsError)
    assert checkpoint.fetch() == found


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("damaged", ["another SHA-256 than", sha(DATA), "damaged on the way"]),
        ("cut", ["could not download"]),
        ("missing", ["could not download", "404 Not Found"]),
        ("refused", ["could not download", "403 Forbidden"]),
    ],
)
def test_a_download_that_fails_leaves_nothing(site: Loopback, tmp_path: Path, harm: str, words: list[str]) -> None:
    site.files["/sam.pth"] = DATA if harm != "damaged" else DATA[:-1] + b"\0"
    if harm == "missing":
        del site.files["/sam.pth"]
    if harm == "refused":
        site.broken["/sam.pth"] = 403
    site.cut["/sam.pth"] = 1000 if harm == "cut" else 0
    checkpoint = Checkpoint(f"{site.url}/sam.pth?secret", sha(DATA), "segment.checkpoint")
    assert "secret" not in refusal(checkpoint.fetch, "segment.checkpoint", "/sam.pth", *words)
    assert [path for path in (tmp_path / "cache" / "checkpoints").rglob("*") if path.is_file()] == []
    site.cut.clear(), site.broken.clear()
    site.files["/sam.pth"] = DATA
    assert checkpoint.fetch().path.read_bytes() == DATA


def test_checkpoints_of_other_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # about the internet, not about the store that the job works on
    fsspec.filesystem("memory").pipe("/weights/sam.pth", b"tensors")
    found = Checkpoint("memory://weights/sam.pth", sha(b"tensors")).fetch()
    assert found.path.read_bytes() == b"tensors"
    refusal(Checkpoint("nonsense://a/b.pth", "0" * 64).fetch, "could not download", "nonsense")
    monkeypatch.setenv("RWKVFUSION_CACHE", str(write(tmp_path, {"file": b""}) / "file"))
    refusal(Checkpoint("memory://weights/sam.pth", sha(b"tensors")).fetch, "could not download")


@pytest.mark.parametrize("end", ["", "/", "/..", "/%2e%2e%2f", "/.hidden", "/a/"])
def test_a_url_cannot_lead_out_of_the_cache(tmp_path: Path, end: str) -> None:
    import fsspec

    url = f"memory://weights{end}"
    root = tmp_path / "cache" / "checkpoints" / sha(b"x")
    assert Checkpoint(url, sha(b"x"))._path.resolve().parent == root
    assert fsspec  # the protocol is known


# Hashes.


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose contents were hashed."""
    names: list[str] = []
    digest = hashlib.file_digest

    def count(file: Any, kind: str) -> Any:
        names.append(Path(file.name).name)
        return digest(file, kind)

    monkeypatch.setattr(hashes.hashlib, "file_digest", count)
    return names


def test_files_are_read_once(tmp_path: Path, read: list[str]) -> None:
    folder = write(tmp_path / "tiny", FILES)
    age(*folder.iterdir())
    found = HubModel(str(folder)).find()
    assert sorted(read) == sorted(FILES)
    read.clear()
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert [HubModel(str(folder)).find(), HubModel(str(link)).find().sha256] == [found, found.sha256]
    assert read == []
    os.utime(folder / "merges.txt")
    assert HubModel(str(folder)).find() == found
    assert read == ["merges.txt"]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.binary(min_size=2, max_size=2), st.booleans()), max_size=8))
def test_hashes_are_those_of_the_files_however_fast_they_change(writes: list[tuple[str, bytes, bool]]) -> None:
    """Of one size, within one tick of a coarse clock or long ago: the memo never tells of what was before."""
    tick = time.time_ns()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RWKVFUSION_CACHE", f"{folder}/cache")
        for i, (name, data, old) in enumerate(writes):
            path = Path(folder, name)
            path.write_bytes(data)
            os.utime(path, ns=(i, i) if old else (tick, tick))
            paths = [path for path in (Path(folder, "a"), Path(folder, "b")) if path.exists()]
            assert file_hashes(paths) == {path: sha(path.read_bytes()) for path in paths}


ENTRIES = st.recursive(
    st.none() | st.integers() | st.text(max_size=70), lambda inner: st.lists(inner, max_size=3), max_leaves=5
)


@given(memo=st.binary() | ENTRIES | st.fixed_dictionaries({"own": ENTRIES}))
def test_a_damaged_memo_is_no_memo(tmp_path_factory: pytest.TempPathFactory, memo: Any) -> None:
    folder = tmp_path_factory.mktemp("memo")
    path = write(folder, {"file": b"data"}) / "file"
    age(path)
    if isinstance(memo, dict):
        state = path.stat()
        given = memo["own"]
        own = [state.st_size, state.st_mtime_ns, *given] if isinstance(given, list) else given
        memo = {str(path): own}
    data = memo if isinstance(memo, bytes) else json.dumps(memo).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RWKVFUSION_CACHE", str(folder / "cache"))
        write(folder / "cache", {"hashes.json": data})
        assert file_hashes([path]) == {path: sha(b"data")}
    shutil.rmtree(folder)


def test_a_memo_that_cannot_be_written_is_done_without(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, {"file": b"data"}) / "file"
    age(path)
    monkeypatch.setenv("RWKVFUSION_CACHE", str(path / "below" / "a" / "file"))
    assert file_hashes([path]) == file_hashes([path]) == {path: sha(b"data")}
    assert read == ["file", "file"]
