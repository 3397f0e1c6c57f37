"""Checkpoints and models in an object store, against a real server that speaks S3."""

import errno
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import s3fs
import torch
from torch import Tensor

from tests.object_store import S3Server
from tests.unit.test_checkpoints import reports
from tests.unit.training import Recorder, configuration
from trainers.config import Fence, TrainTask
from trainers.data.cache_settings import use_cache
from trainers.storage.addresses import address_of, local_place, moved_to
from trainers.storage.artifacts import artifacts_at, fetched, published
from trainers.storage.local_copies import remove_old_copies
from trainers.storage.object_store import ObjectNameError, ObjectStore, ObjectStoreError, object_store
from trainers.storage.probing import check_store
from trainers.training.checkpoints import (
    MANIFEST,
    OPTIMIZER,
    WEIGHTS,
    CheckpointError,
    CheckpointWriteError,
    checkpoints_below,
    discard,
    epoch_folders,
    has_optimizer,
    load_newest,
    load_weights,
    retire,
    save,
    saved,
)
from trainers.training.fencing import SupersededError, check, claim
from trainers.worker import run_task

DIGEST = "d" * 64


@pytest.fixture
def root(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for an address, without local copies."""
    monkeypatch.setenv("VITSEARCH_IMAGE_CACHE", "")
    use_cache(tmp_path / "cache", 1.0)
    return local_place(s3.root, tmp_path / "cache")


@pytest.fixture
def elsewhere(root: Path, tmp_path: Path) -> Callable[[Path], Path]:
    """Gives the same objects as another machine sees them, which has no local copies."""
    return lambda path: moved_to(path, tmp_path / "another")


def weights(epoch: int, *, salt: float = 0.0) -> dict[str, Tensor]:
    return {"layer.weight": torch.full((3, 2), float(epoch) + salt)}


def save_epoch(
    folder: Path, epoch: int, *, keep: int = 1, salt: float = 0.0, check: Callable[[], None] | None = None
) -> None:
    save(
        folder,
        weights=weights(epoch, salt=salt),
        optimizer={"0.exp_avg": torch.full((2,), float(epoch))},
        averages={"ema": weights(epoch)},
        history=reports(epoch),
        configuration=DIGEST,
        keep=keep,
        **({} if check is None else {"check": check}),
    )


def keys(path: Path) -> set[str]:
    address = address_of(path)
    assert address is not None
    prefix = address.partition("://")[2]
    return {key.removeprefix(f"{prefix}/") for key in object_store("s3").find(prefix)}


def test_checkpoints_are_the_same_on_every_machine(root: Path, elsewhere: Callable[[Path], Path]) -> None:
    for epoch in range(1, 5):
        save_epoch(root / "trial", epoch, keep=3)
    there = elsewhere(root / "trial")
    assert [path.name for path in epoch_folders(there)] == ["epoch-0002", "epoch-0003", "epoch-0004"]
    assert [has_optimizer(path) for path in epoch_folders(there)] == [False, True, True]
    newest = load_newest(there, accepted=[DIGEST])
    assert newest is not None
    assert (newest.epoch, newest.damaged, list(newest.averages)) == (4, (), ["ema"])
    assert torch.equal(newest.weights["layer.weight"], weights(4)["layer.weight"])
    for here, record in zip(saved(root / "trial"), saved(there), strict=True):
        assert (here.epoch, here.sha256, here.num_bytes) == (record.epoch, record.sha256, record.num_bytes)
        assert torch.equal(
            load_weights(record.path, average="ema")["layer.weight"], weights(record.epoch)["layer.weight"]
        )


def test_only_what_retention_keeps_is_left(root: Path) -> None:
    for epoch in range(1, 4):
        save_epoch(root / "stage" / "trial", epoch, keep=3)
    kept = root / "stage" / "trial" / "epoch-0003"
    retire(root / "stage", keep={kept})
    assert keys(root) == {f"stage/trial/epoch-0003/{name}" for name in (WEIGHTS, "ema.safetensors", MANIFEST)}
    assert checkpoints_below(root) == [kept]
    discard(root / "stage" / "trial")
    assert keys(root) == set()
    assert load_newest(root / "stage" / "trial", accepted=[DIGEST]) is None


def count_writes(on_write: Callable[[int], None]) -> None:
    """Call a function before each change of a store in this process, with the number of changes before it."""
    count = [0]

    def counting(method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        on_write(count[0])
        count[0] += 1
        return method(*arguments, **named)

    files = s3fs.S3FileSystem
    for name in ("pipe_file", "rm_file", "rm"):
        inner = getattr(files, name)
        setattr(files, name, lambda *given, inner=inner, **named: counting(inner, *given, **named))


def write_and_die(folder: Path, after: int) -> None:
    """In a child process: save three epochs, and die before the next change, once `after` changes were made."""
    count_writes(lambda done: os.kill(os.getpid(), signal.SIGKILL) if done == after else None)
    claim(Fence(file=folder / "attempt", token=1))
    for epoch in range(1, 4):
        save_epoch(folder, epoch)


def in_child(work: Callable[[], None]) -> int | None:
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(120)
    return process.exitcode


def test_a_kill_between_any_two_writes_leaves_the_previous_checkpoint_and_can_be_resumed(
    root: Path, elsewhere: Callable[[Path], Path]
) -> None:
    after, newest_epochs = 0, []
    while True:
        folder = root / f"trial-{after}"
        status = in_child(partial(write_and_die, folder, after))
        if status == 0:
            break
        assert status == -signal.SIGKILL
        there = elsewhere(folder)
        claim(Fence(file=there / "attempt", token=2))
        newest = load_newest(there, accepted=[DIGEST])
        assert newest is None or newest.damaged == ()
        reached = 0 if newest is None else newest.epoch
        newest_epochs.append(reached)
        for epoch in range(reached + 1, 5):
            save_epoch(there, epoch)
        expected = {
            f"epoch-{epoch:04d}/{name}"
            for epoch in (3, 4)
            for name in (WEIGHTS, OPTIMIZER, "ema.safetensors", MANIFEST)
        }
        assert {key for key in keys(there) if not key.startswith("attempt/")} == expected
        after += 1
    assert after >= 14  # a token, three checkpoints of four objects, and the removal of one
    assert newest_epochs == sorted(newest_epochs)
    assert set(newest_epochs) == {0, 1, 2, 3}


def test_an_older_attempt_that_writes_late_is_replaced(root: Path, elsewhere: Callable[[Path], Path]) -> None:
    """Its fence was checked before the newer attempt began, and its objects arrive afterwards."""
    here, there = root / "trial", elsewhere(root / "trial")
    claim(Fence(file=there / "attempt", token=8))
    save_epoch(here, 1, salt=0.5)
    newer = partial(check, Fence(file=there / "attempt", token=8))
    save_epoch(there, 1, check=newer)
    assert torch.equal(load_weights(there / "epoch-0001")["layer.weight"], weights(1)["layer.weight"])
    older = partial(check, Fence(file=here / "attempt", token=7))
    with pytest.raises(SupersededError, match=r"only the newest attempt may train in s3://lab/vitsearch-\w+/trial,"):
        save_epoch(here, 1, salt=0.5, check=older)
    newest = load_newest(elsewhere(there), accepted=[DIGEST])
    assert newest is not None
    assert newest.damaged == ()
    assert torch.equal(newest.weights["layer.weight"], weights(1)["layer.weight"])


def test_the_highest_token_wins_in_whatever_order_tokens_arrive(root: Path) -> None:
    artifacts, file = artifacts_at(root), root / "trial" / "attempt"
    assert artifacts.newest_token(file) == 0
    for token, newest in ((9, 9), (10, 10), (3, 10)):
        artifacts.write_token(file, token)
        assert artifacts.newest_token(file) == newest
    assert len(keys(root)) <= 2


class Stopped(Recorder):
    """Asks to stop after the first epoch."""

    def should_stop(self) -> bool:
        return bool(self.reports)


def test_a_training_is_continued_on_another_machine(root: Path, elsewhere: Callable[[Path], Path]) -> None:
    whole = TrainTask(configuration=configuration(epochs=3), folder=root / "whole", keep_checkpoints=3)
    halves = whole.model_copy(update={"folder": root / "halves", "fence": Fence(file=root / "halves/attempt", token=1)})
    expected = run_task(whole, Recorder())
    assert expected.state == "complete", expected.reason
    assert run_task(halves, Stopped()).state == "interrupted"
    folder = elsewhere(halves.folder)
    moved = halves.model_copy(update={"folder": folder, "fence": Fence(file=folder / "attempt", token=2)})
    outcome = run_task(moved, Recorder())
    assert outcome.state == "complete", outcome.reason
    assert [one.sha256 for one in outcome.checkpoints] == [one.sha256 for one in expected.checkpoints]


def test_a_damaged_object_is_passed_over(root: Path, elsewhere: Callable[[Path], Path]) -> None:
    for epoch in (1, 2):
        save_epoch(root / "trial", epoch)
    address = address_of(root / "trial" / "epoch-0002" / WEIGHTS)
    assert address is not None
    object_store("s3").write(address.partition("://")[2], b"damaged")
    newest = load_newest(elsewhere(root / "trial"), accepted=[DIGEST])
    assert newest is not None
    assert newest.epoch == 1
    assert "s3://lab/" in newest.damaged[0]


def test_files_of_a_stage_are_read_anew_if_they_have_changed(root: Path, elsewhere: Callable[[Path], Path]) -> None:
    stage = root / "studies" / "a" / "train"
    large = os.urandom(100_000)
    for name, content in (("curves.png", b"first"), ("model.safetensors", large), ("trial-0001/note", b"left out")):
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        (stage / name).write_bytes(content)
    published(stage)
    there = elsewhere(stage)
    fetched(there.parent, without=("trial-",))
    assert (there / "curves.png").read_bytes() == b"first"
    assert (there / "model.safetensors").read_bytes() == large
    assert not (there / "trial-0001").exists()
    read_at = (there / "model.safetensors").stat().st_ino
    (stage / "curves.png").write_bytes(b"later")
    published(stage / "curves.png")
    fetched(there)
    assert (there / "curves.png").read_bytes() == b"later"
    assert (there / "model.safetensors").stat().st_ino == read_at  # unchanged, so not read again
    artifacts_at(there).delete(there)
    assert keys(root) == set()
    assert not there.exists()


def test_copies_of_weights_that_were_not_used_for_longest_are_removed_first(tmp_path: Path) -> None:
    files = [tmp_path / "vitsearch-objects" / "s3" / "b" / f"{index}.safetensors" for index in range(4)]
    files[0].parent.mkdir(parents=True)
    for age, file in zip((40_000, 30_000, 20_000, 0), files, strict=True):
        file.write_bytes(bytes(1000))
        os.utime(file, (time.time() - age, 0))
    picture = files[0].with_name("curves.png")
    picture.write_bytes(bytes(5000))
    remove_old_copies(tmp_path / "vitsearch-objects", 2000)
    assert [file.exists() for file in files] == [False, False, True, True]
    remove_old_copies(tmp_path / "vitsearch-objects", 0)
    assert [file.exists() for file in files] == [False, False, False, True]  # the last one may be in use
    assert picture.exists()


def test_no_weights_are_kept_without_a_cache(root: Path, tmp_path: Path) -> None:
    use_cache(tmp_path / "cache", 0.0)
    save_epoch(root / "trial", 1)
    assert torch.equal(load_weights(root / "trial" / "epoch-0001")["layer.weight"], weights(1)["layer.weight"])
    assert list(root.rglob("*.safetensors")) == []


@pytest.mark.parametrize("cause", ["no cache", "full disk"])
def test_a_copy_that_cannot_be_replaced_is_not_taken_for_the_new_object(
    cause: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, older, newer = root / "stage" / "one", bytes(100_000), bytes([1]) * 100_000
    artifacts = artifacts_at(folder)
    artifacts.commit(folder, {WEIGHTS: older, MANIFEST: b"{}"}, manifest=MANIFEST)
    with monkeypatch.context() as patched:
        if cause == "no cache":
            use_cache(tmp_path / "cache", 0.0)
        else:
            patched.setattr("tempfile.mkstemp", lambda **_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        artifacts.commit(folder, {WEIGHTS: newer, MANIFEST: b"{}"}, manifest=MANIFEST)
    fetched(folder)
    assert (folder / WEIGHTS).read_bytes() == newer


@pytest.mark.parametrize("rest", ["{outside}/escaped", "../../escaped", "a//b", "a/./b", "link/escaped"])
def test_an_object_is_never_copied_to_a_file_outside_of_its_folder(rest: str, root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    place = root / "stage"
    place.mkdir(parents=True)
    (place / "link").symlink_to(outside)
    address = address_of(place)
    assert address is not None
    object_store("s3").write(f"{address.partition('://')[2]}/{rest.format(outside=outside)}", b"x")
    with pytest.raises(ObjectNameError, match=r"s3://.* must lie below .*: remove it from the store"):
        fetched(place)
    with pytest.raises(ObjectNameError):
        artifacts_at(place).committed_below(place, prefix="epoch-", manifest=MANIFEST)
    assert list(outside.iterdir()) == []
    assert sorted(path.name for path in place.rglob("*")) == ["link"]


def test_what_a_console_creates_for_an_empty_folder_is_no_object(s3: S3Server) -> None:
    import boto3

    bucket, _, folder = s3.root.removeprefix("s3://").partition("/")
    client = boto3.client("s3", endpoint_url=s3.endpoint)
    for key in (f"{folder}/", f"{folder}/studies/"):
        client.put_object(Bucket=bucket, Key=key, Body=b"")
    assert object_store("s3").find(f"{bucket}/{folder}") == {}


def test_messages_name_the_object_and_not_its_copy(root: Path) -> None:
    save_epoch(root / "trial", 1)
    with pytest.raises(CheckpointError, match=r"^s3://lab/\S+/trial must be empty or contain checkpoints"):
        load_newest(root / "trial", accepted=["another"])
    with pytest.raises(CheckpointError, match=r"the checkpoint s3://lab/\S+/epoch-0001 must have the average 'swa'"):
        load_weights(root / "trial" / "epoch-0001", average="swa")


def test_a_store_that_overwrites_whatever_is_asked_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_store(root)
    assert keys(root) == set()
    inner = s3fs.S3FileSystem._pipe_file

    async def overwriting(self: Any, path: str, value: bytes, mode: str = "overwrite", **named: Any) -> None:
        await inner(self, path, value, **named)

    with monkeypatch.context() as patched:
        patched.setattr(s3fs.S3FileSystem, "_pipe_file", overwriting)
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(ObjectStoreError, match="must refuse to write an object that exists"):
            check_store(root)
    s3fs.S3FileSystem.clear_instance_cache()
    assert keys(root) == set()


def test_an_unreachable_store_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(CheckpointWriteError, match=r"the checkpoint s3://lab/\S+ must be written, but: the store"):
            save_epoch(root / "trial", 1)
        with pytest.raises(ObjectStoreError, match="Check the network, and the endpoint"):
            ObjectStore("s3").find("lab")
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def test_a_missing_bucket_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ObjectStoreError, match=r"s3://nobody/\S+ must be readable and writable.*bucket does not exist"):
        check_store(local_place("s3://nobody/has/this", tmp_path))
    assert keys(root) == set()
