"""Every crash point of the commit protocol, two crashes deep; and protocols with a hole are found out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

import simulator
from batchserve import commit, storage, workspace
from batchserve.planning import Plan
from batchserve.target import Target
from simdisk import SimDisk
from simulator import Explorer, Run, Scenario, Scorer

HISTORIES = 10_000


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return simulator.planned(tmp_path_factory.mktemp("plan"))


def test_no_history_breaks_a_promise(plan: Plan) -> None:
    """Killed or cut off the power at any effect, twice, the same command ends with the same bytes."""
    found = simulator.explore(plan, HISTORIES)

    assert not found.violations
    assert found.histories >= HISTORIES


@pytest.mark.parametrize("dataset", [False, True])
def test_the_parts_of_another_plan_are_never_used(plan: Plan, dataset: bool) -> None:
    """A run over what a run of another plan left is refused as long as a part of it is there."""
    assert simulator.refuses_another_plan(Scenario(plan, dataset))


# -- protocols with a hole --------------------------------------------------------------------


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _without(method: str, caller: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Return a mutation: the disk's `method` does nothing while `storage.caller` runs."""

    def mutate(patch: pytest.MonkeyPatch) -> None:
        honest: Callable[..., Any] = getattr(storage, caller)

        def careless(*arguments: Any) -> Any:
            with pytest.MonkeyPatch.context() as meanwhile:
                meanwhile.setattr(SimDisk, method, _nothing)
                return honest(*arguments)

        patch.setattr(storage, caller, careless)

    return mutate


def _unsynced_parts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(storage.Sink, "sync", lambda sink: sink._file.close())


def _unsynced_stage(patch: pytest.MonkeyPatch) -> None:
    honest = SimDisk.sync_dir

    def sync_dir(disk: SimDisk, path: Path) -> None:
        if "dataset" not in path.parts:
            honest(disk, path)

    patch.setattr(SimDisk, "sync_dir", sync_dir)


def _in_place(patch: pytest.MonkeyPatch) -> None:
    def name(temporary: Path, found: Target, **_: Any) -> None:
        data = storage.disk.read(temporary)
        storage.remove(found.path)
        storage.write_durable(found.path, data)
        storage.remove(temporary)
        storage.disk.sync_dir(found.path.parent)

    patch.setattr(commit, "_name", name)


def _named_before_synced(patch: pytest.MonkeyPatch) -> None:
    honest, sync = commit._name, SimDisk.sync_file

    def name(temporary: Path, found: Target, *, overwrite: bool) -> None:
        honest(temporary, found, overwrite=overwrite)
        sync(cast("SimDisk", storage.disk), found.path)

    patch.setattr(SimDisk, "sync_file", _nothing)
    patch.setattr(commit, "_name", name)


def _no_validation(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(commit, "damaged", lambda *_: [])
    patch.setattr(Run, "glue_checks", False)


def _taken_over(patch: pytest.MonkeyPatch) -> None:
    def link(disk: SimDisk, existing: Path, path: Path) -> None:
        disk.effect()
        disk.change((path, disk.there(existing)))

    patch.setattr(SimDisk, "link", link)


def _receipt_after_output(patch: pytest.MonkeyPatch) -> None:
    """Publish the output first and its receipt when the workspace is gone."""
    honest, remove = storage.replace, workspace.discard
    kept: list[Any] = []

    def replace(temporary: Path, path: Path) -> None:
        if path.name.endswith(".receipt.json"):
            kept[:] = [storage.disk.read(temporary), path]
        else:
            honest(temporary, path)

    def discard(folder: Path) -> None:
        remove(folder)
        if kept:
            storage.write_durable(kept[1], kept[0])
            storage.disk.sync_dir(kept[1].parent)

    patch.setattr(storage, "replace", replace)
    patch.setattr(workspace, "discard", discard)


MUTANTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "a part is not synced": _unsynced_parts,
    "plans, receipts and manifests are not synced": _without("sync", "write_durable"),
    "the output is not synced": lambda patch: patch.setattr(SimDisk, "sync_file", _nothing),
    "the folder of a linked name is not synced": _without("sync_dir", "link_first"),
    "the folder of a renamed file is not synced": _without("sync_dir", "replace"),
    "the folder of swapped datasets is not synced": _without("sync_dir", "exchange"),
    "the folder of the workspace is not synced": _without("sync_dir", "make_dir"),
    "a staged dataset is not synced": _unsynced_stage,
    "a receipt is named before its part is synced": lambda patch: patch.setattr(
        Scorer, "commits_early", True
    ),
    "an output is named before it is synced": _named_before_synced,
    "the output is written in place": _in_place,
    "the receipt comes after the output": _receipt_after_output,
    "parts are not validated": _no_validation,
    "a taken name is taken over": _taken_over,
}


def test_the_protocol_as_it_is_passes_what_finds_the_holes(plan: Plan) -> None:
    """The few histories that each mutant is given break no promise of the protocol itself."""
    assert not _violations(plan)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_protocol_with_a_hole_is_found_out(name: str, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rule of the protocol is needed: without it some history breaks a promise."""
    MUTANTS[name](monkeypatch)

    assert _violations(plan)


def _violations(plan: Plan) -> frozenset[str]:
    """Return what the first history finds that finds anything; every first cut, one second cut each."""
    kinds = [(False, "", True), (True, "", True), (False, "overwrite", False), (True, "append", False)]
    explorers = [Explorer(Scenario(plan, *kind)) for kind in kinds]
    return next((wrong for explorer in explorers for wrong in explorer.histories(1) if wrong), frozenset())


def test_a_run_without_the_plan_check_is_found_out(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without comparing plans, the parts of another would be continued."""
    monkeypatch.setattr(workspace, "_prepare", _nothing)

    assert not simulator.refuses_another_plan(Scenario(plan))
