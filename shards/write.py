"""A source -> shards. Whole or not at all, resumable, and byte-identical however often it is repeated, by whom.

    source -> scan (with filters: which samples are kept) -> a job for each shard -> tars, indices -> manifest

Order of appearance in the folder: `.build.json` (the plan), then for each shard its tar and its index, then
`rejected.parquet` where samples are left out, then `manifest.json`, which makes the build finished. A sample that is
not sound (`shards.soundness`) never stops a build: it is left out and counted, with filters or without. Memory does not
grow with the number of samples that were written.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from shards.console import Progress
from shards.errors import SourceGone, UserError
from shards.executors import Executor
from shards.filters import Filters
from shards.keys import repeated_key
from shards.manifest import MANIFEST, REJECTED, BuildPlan, FilterReport, Manifest, to_json
from shards.packing import Packed, pack
from shards.scan import FilteredSource, Selection, forget_scan, in_order, rejections, scan
from shards.sources.base import Source
from shards.storage import PARTIAL, locked_folder, write_atomically

PLAN = ".build.json"
SCAN = ".scan"
Existing = Literal["refuse", "resume", "overwrite"]


def build_shards(
    source: Source,
    out: Path,
    *,
    samples_per_shard: int = 1000,
    existing: Existing = "refuse",
    settings: Mapping[str, Any] | None = None,
    filters: Filters | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Packs `source` into shards under `out`.

    Args:
        existing: What to do with a finished or unfinished build in `out`: refuse it, go on with it (finished shards are
            checked and kept), or delete its files first. Folders that hold anything else are always refused.
        settings: The source's options, kept in the manifest for people to read.
        filters: Which samples and captions to keep, beside what `shards.soundness` asks of all. The counts of what is
            left out stand in the manifest, the places in `rejected.parquet`.
        executor: Who does it; the bytes do not depend on it.
        progress: Advanced by the samples of each finished part, in the scan and again in the writing.

    Raises:
        UserError: a folder that may not be used or written, an empty source, one without a sample that can be kept, a
            key twice or too long.
        Stopped: a worker died.
        SourceGone: the source can no longer be read.
    """
    if samples_per_shard < 1:
        raise UserError(f"`samples_per_shard` (={samples_per_shard}) must be at least 1")
    if not len(source):
        raise UserError(f"`source` (={source.name}) must hold at least one sample")
    plan = BuildPlan(
        source=source.name,
        fingerprint=source.fingerprint(),
        samples=len(source),
        samples_per_shard=samples_per_shard,
        settings=dict(settings or {}),
        filters=filters.settings if filters else {},
    )
    _check_folder(out, plan, existing)
    with locked_folder(out):
        write_atomically(out / PLAN, to_json(plan))
        if existing == "overwrite":
            _remove_shards(out)
        try:
            return _build(source, out, plan, filters, executor or Executor(), progress)
        except SourceGone as gone:
            raise SourceGone(f"{gone}; what is finished is kept, and --resume goes on") from gone


def _build(
    source: Source, out: Path, plan: BuildPlan, filters: Filters | None, executor: Executor, progress: Progress | None
) -> Manifest:
    selection = None
    if filters and plan.filters:
        selection = _selected(source, out, plan, filters, executor, progress)
        source = FilteredSource(source, selection, filters)
    packed = _write_shards(source, out, plan, executor, progress)
    report = _report(packed, selection)
    shards = tuple(shard.entry for shard in packed)
    if report and not report.kept:
        raise UserError(f"`{source.name}` must have a sample that can be kept: {'; '.join(report.lines())}")
    if key := repeated_key([out / shard.index_name for shard in shards], len(source)):
        raise UserError(f"`key` (={key}) must be unique, but two samples of `{source.name}` have it")
    if report:
        names = rejections(_rejected(packed, selection))
        write_atomically(out / REJECTED, names)
        report = report.model_copy(update={"rejections_sha256": hashlib.sha256(names).hexdigest()})
    manifest = Manifest(plan=plan, shards=shards, filtered=report)
    write_atomically(out / MANIFEST, to_json(manifest))
    (out / PLAN).unlink()
    forget_scan(out / SCAN)
    return manifest


def _selected(
    source: Source, out: Path, plan: BuildPlan, filters: Filters, executor: Executor, progress: Progress | None
) -> Selection:
    """What the filters keep. Finished parts of the scan lie under the plan's digest: no other build takes them."""
    store = out / SCAN / plan.digest
    store.mkdir(parents=True, exist_ok=True)
    selection = scan(source, filters, executor, store, progress)
    if not len(selection.kept):
        raise UserError(f"the filters must keep at least one sample: {'; '.join(selection.report.lines())}")
    if progress:
        progress.advance(selection.report.read - selection.report.kept)  # These need no writing.
    return selection


def _check_folder(out: Path, plan: BuildPlan, existing: Existing) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"`out` (={out}) must be a folder")
    names = [p.name for p in out.iterdir() if not p.name.endswith(PARTIAL)] if out.exists() else []
    if not names:
        return
    held = _plan_in(out)
    if held is None:
        raise UserError(f"`out` (={out}) must be new, empty or hold a build of shards, but it holds {sorted(names)[0]}")
    if existing == "refuse":
        state = "a finished build" if MANIFEST in names else "an unfinished build"
        raise UserError(f"`out` (={out}) holds {state}: give --resume to go on with it or --overwrite to replace it")
    if existing == "resume" and (difference := held.difference(plan)):
        raise UserError(f"`out` (={out}) holds a build with {difference}: use the same settings or --overwrite")


def _plan_in(out: Path) -> BuildPlan | None:
    with suppress(OSError, ValueError):
        return Manifest.model_validate_json((out / MANIFEST).read_bytes()).plan
    with suppress(OSError, ValueError):
        return BuildPlan.model_validate_json((out / PLAN).read_bytes())
    return None


def _remove_shards(out: Path) -> None:
    """Deletes what an earlier build wrote, the commit point first; other files stay."""
    for pattern in (MANIFEST, REJECTED, "shard-[0-9]*.index.parquet", "shard-[0-9]*.tar", f".shard-*{PARTIAL}"):
        for path in sorted(out.glob(pattern)):
            path.unlink()
    forget_scan(out / SCAN)


def _write_shards(
    source: Source, out: Path, plan: BuildPlan, executor: Executor, progress: Progress | None
) -> list[Packed]:
    jobs = ((number,) for number in range(-(-len(source) // plan.samples_per_shard)))
    found: dict[str, Packed] = {}
    for packed in executor.run(pack, (source, out, plan), jobs):
        found[packed.entry.name] = packed
        if progress:
            progress.advance(packed.entry.samples + len(packed.left_out.samples))
    return [found[name] for name in sorted(found)]


def _report(packed: list[Packed], selection: Selection | None) -> FilterReport | None:
    """What became of every sample and caption; None where no filter was asked for and nothing is left out."""
    rejected = _rejected(packed, selection)
    dropped = sum((shard.left_out.captions for shard in packed), Counter())
    if selection is None and not rejected and not dropped:
        return None
    kept = sum(shard.entry.samples for shard in packed)
    captions = sum(shard.captions + shard.left_out.unkept for shard in packed)
    if selection:
        dropped += Counter(selection.report.captions_dropped)
        captions = selection.report.captions_read
    return FilterReport(
        read=kept + len(rejected),
        kept=kept,
        rejected=in_order(Counter(rejected.values())),
        captions_read=captions,
        captions_dropped=in_order(dropped),
        unscored=selection.report.unscored if selection else {},
    )


def _rejected(packed: list[Packed], selection: Selection | None) -> dict[int, str]:
    """Index in the source -> reason: what the scan found, and what was not sound when it was to be written."""
    rejected = selection.rejected if selection else {}
    for shard in packed:
        for index, reason in shard.left_out.samples.items():
            rejected[int(selection.kept[index]) if selection else index] = reason
    return rejected
