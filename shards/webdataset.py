"""WebDataset tars of other tools (img2dataset, LAION), indexed where they lie: `shards manifest DIR`.

    *.tar -> walk -> groups of members with one key -> rows of an index, faults and rejections counted by reason

Not a byte of the tars changes; an index beside each and `manifest.json` make the folder a shard set. A sample is an
image with a caption, from `KEY.txt` or from a field of `KEY.json`, all in one tar. Keys end at the last dot of the
name, so that `img.v1.jpg` and `img.v2.jpg` are two. The same key may stand for several samples: identity is the place.
What is not sound (`shards.soundness`) is left out and counted; members beyond its limits are not read.
"""

import hashlib
import json
import mmap
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Any

from shards.console import Progress
from shards.decode import image_size
from shards.errors import UserError
from shards.executors import Executor
from shards.foreign import UnsoundCaption, foreign_captions, foreign_metadata
from shards.manifest import (
    MANIFEST,
    BuildPlan,
    FilterReport,
    Foreign,
    Manifest,
    ShardEntry,
    index_bytes,
    index_name,
    to_json,
)
from shards.sample import IMAGE_EXTENSIONS
from shards.soundness import IMAGE_BYTES, MEMBER_BYTES, unsound_image
from shards.storage import locked_folder, write_atomically
from shards.tar_walk import Buffer, Fault, Member, walk

MOST_MEMBERS = 1 << 21
"""Of one tar, at less than 2 KiB each while it is indexed; those behind them are left out, as a fault says."""
MOST_FAULTS = 100
"""Sentences about one tar."""


@dataclass(frozen=True, slots=True)
class Indexed:
    """What one tar holds.

    Attributes:
        captions: Of all samples.
        rejected: Groups of members that are no sample, by reason.
        notes: Things that readers stumble over and this one does not, by name.
    """

    entry: ShardEntry
    captions: int
    rejected: Counter[str]
    notes: Counter[str]
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ManifestResult:
    """The manifest of a folder, and what is wrong with its tars: one sentence each."""

    manifest: Manifest
    notes: Counter[str]
    faults: tuple[str, ...]


def write_manifest(
    folder: Path,
    caption_field: str | None = None,
    *,
    overwrite: bool = False,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> ManifestResult:
    """Indexes the tars of `folder`.

    Args:
        caption_field: Take captions from this field of `KEY.json` alone; None takes `KEY.txt`, else field `caption`.
        overwrite: Replace the manifest of an earlier call.

    Raises:
        UserError: no tars, a folder that `shards build` wrote or is indexed already, no samples in any tar.
    """
    tars = find_tars(folder)
    check_unindexed(folder, overwrite)
    with locked_folder(folder):
        found: dict[str, Indexed] = {}
        for indexed in (executor or Executor()).run(index_tar, (caption_field,), ((tar,) for tar in tars)):
            found[indexed.entry.name] = indexed
            if progress:
                progress.advance()
        results = [found[tar.name] for tar in tars]
        manifest = _manifest(results, caption_field)
        write_atomically(folder / MANIFEST, to_json(manifest))
    faults = tuple(f"{result.entry.name}: {fault}" for result in results for fault in result.faults)
    return ManifestResult(manifest, sum((result.notes for result in results), Counter()), faults)


def find_tars(folder: Path) -> list[Path]:
    """The tars of a folder by name. Raises UserError where there are none."""
    if not folder.is_dir():
        raise UserError(f"`folder` (={folder}) must be a folder")
    tars = sorted(folder.glob("*.tar"))
    if not tars:
        below = next(folder.rglob("*.tar"), None)
        where = f"; there are some in {below.parent}" if below else ""
        raise UserError(f"`folder` (={folder}) must hold .tar files{where}")
    return tars


def check_unindexed(folder: Path, overwrite: bool) -> None:
    """Raises UserError where the folder has a manifest of another command, or one at all unless it may be replaced."""
    path = folder / MANIFEST
    if not path.exists():
        return
    try:
        foreign = json.loads(path.read_bytes()).get("foreign")
    except (ValueError, AttributeError):
        foreign = None
    if not foreign:
        raise UserError(f"`folder` (={folder}) holds a {MANIFEST} that `shards manifest` did not write")
    if not overwrite:
        raise UserError(f"`folder` (={folder}) is indexed: give --overwrite to do it again")


def _manifest(results: list[Indexed], caption_field: str | None) -> Manifest:
    shards = tuple(result.entry for result in results)
    rejected = sum((result.rejected for result in results), Counter())
    kept = sum(shard.samples for shard in shards)
    if not kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in rejected.items()) or "no members"
        raise UserError(f"the tars must hold an image with a caption, but none does: {reasons}")
    read = kept + rejected.total()
    report = FilterReport(
        read=read,
        kept=kept,
        rejected=dict(rejected),
        captions_read=sum(result.captions for result in results),
        captions_dropped={},
        unscored={},
    )
    plan = BuildPlan(
        source="webdataset",
        fingerprint=hashlib.sha256("\n".join(shard.sha256 for shard in shards).encode()).hexdigest(),
        samples=read,
        samples_per_shard=max(shard.samples for shard in shards),
        settings={"caption_field": caption_field} if caption_field else {},
    )
    return Manifest(plan=plan, shards=shards, filtered=report, foreign=Foreign(caption_field=caption_field))


def index_tar(caption_field: str | None, tar: Path) -> Indexed:
    """Indexes one tar and writes its index beside it."""
    size = tar.stat().st_size
    with tar.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else memoryview(b"") as view:
            rows, rejected, notes, faults = _rows(view if size else b"", caption_field)  # type: ignore[arg-type]
    content = index_bytes(rows, {"tar_sha256": digest})
    write_atomically(tar.with_name(index_name(tar.name)), content)
    entry = ShardEntry(
        name=tar.name,
        samples=len(rows),
        bytes=size,
        sha256=digest,
        index_sha256=hashlib.sha256(content).hexdigest(),
    )
    return Indexed(entry, sum(len(row["caption_words"]) for row in rows), rejected, notes, faults)


Group = dict[str, Member]
"""Extension -> member, of one key."""


def _rows(
    view: Buffer, caption_field: str | None
) -> tuple[list[dict[str, Any]], Counter[str], Counter[str], tuple[str, ...]]:
    items = list(islice(walk(view), MOST_MEMBERS + 1))
    if len(items) > MOST_MEMBERS:
        items[-1] = Fault("too_many", items[-1].offset, f"more than {MOST_MEMBERS} members; the rest is left out")
    faults = [str(item) for item in items if isinstance(item, Fault) and item.kind != "not_a_file"]
    if len(faults) > MOST_FAULTS:
        faults = [*faults[:MOST_FAULTS], f"and {len(faults) - MOST_FAULTS} faults more"]
    notes = Counter(item.kind for item in items if isinstance(item, Fault))
    rejected: Counter[str] = Counter()
    rows = []
    for members in _stretches(items):
        for key, group in _groups(members, notes, rejected):
            row = _row(view, key, group, caption_field, notes)
            if isinstance(row, str):
                rejected[row] += 1
            else:
                rows.append(row)
    return sorted(rows, key=lambda row: row["image_offset"]), rejected, notes, tuple(faults)


def _stretches(items: list[Member | Fault]) -> list[list[Member]]:
    """Members between two places of damage. Those behind one may be another sample's with the same key."""
    stretches: list[list[Member]] = [[]]
    for item in items:
        if isinstance(item, Member):
            stretches[-1].append(item)
        elif item.kind != "not_a_file":
            stretches.append([])
    return stretches


def _groups(members: list[Member], notes: Counter[str], rejected: Counter[str]) -> list[tuple[str, Group]]:
    """Members that belong together: neighbours with one key, and what completes them from elsewhere in the tar."""
    runs: list[tuple[str, Group]] = []
    for member in members:
        key, extension = _split(member.name)
        if extension not in IMAGE_EXTENSIONS | {"json", "txt"}:
            notes["other_members"] += 1
            continue
        if not runs or runs[-1][0] != key or extension in runs[-1][1]:
            runs.append((key, {}))
        runs[-1][1][extension] = member
        notes["dotted_keys"] += len(runs[-1][1]) == 1 and "." in PurePosixPath(key).name
    by_key: defaultdict[str, list[Group]] = defaultdict(list)
    for key, same in groupby(runs, key=itemgetter(0)):
        groups = [group for _, group in same]
        if len(groups) > 1 and not all(map(_is_whole, groups)):
            rejected["ambiguous"] += len(groups)  # One of two images side by side has no caption: which?
        else:
            by_key[key] += groups
    return [found for key, groups in by_key.items() for found in _joined(key, groups, notes, rejected)]


def _joined(key: str, groups: list[Group], notes: Counter[str], rejected: Counter[str]) -> list[tuple[str, Group]]:
    """Runs of one key: whole samples are left alone, parts are put together where there is one way to do it."""
    whole = [group for group in groups if _is_whole(group)]
    parts = [group for group in groups if not _is_whole(group)]
    notes["repeated_keys"] += len(whole) > 1
    if len(parts) > 1:
        extensions = [extension for group in parts for extension in group]
        if len(extensions) == len(set(extensions)) and not whole:
            notes["apart"] += 1
            return [(key, {extension: member for group in parts for extension, member in group.items()})]
        rejected["ambiguous"] += len(parts)
        parts = []
    return [(key, group) for group in (*whole, *parts)]


def _is_whole(group: Group) -> bool:
    return bool(group.keys() & IMAGE_EXTENSIONS) and bool(group.keys() & {"json", "txt"})


def _split(name: str) -> tuple[str, str]:
    """Key and extension, at the last dot of the file's name."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix else name, path.suffix[1:].lower()


def _row(view: Buffer, key: str, group: Group, caption_field: str | None, notes: Counter[str]) -> dict[str, Any] | str:
    """The index row of a group, or the reason why it is no sample."""
    images = sorted(group.keys() & IMAGE_EXTENSIONS)
    if len(images) != 1:
        return "several_images" if images else "no_image"
    places: Group = {"image": group[images[0]], **{name: group[name] for name in ("json", "txt") if name in group}}
    if places["image"].size > IMAGE_BYTES:
        return "image_too_large"
    if "txt" in places and places["txt"].size > MEMBER_BYTES["txt"]:
        return "caption_too_long"
    read = {name: m for name, m in places.items() if m.size <= MEMBER_BYTES[name]}
    content = {name: bytes(view[m.offset : m.offset + m.size]) for name, m in read.items()}
    if "json" in places and foreign_metadata(content.get("json", b"")) is None:
        notes["json_unreadable"] += 1
        del places["json"]
        content.pop("json", None)
    try:
        captions = foreign_captions(content.get("json"), content.get("txt"), caption_field)
    except UnsoundCaption as error:
        return str(error)
    if not captions:
        return "no_caption"
    if reason := unsound_image(content["image"], images[0]):
        return reason
    width, height = image_size(content["image"])
    row: dict[str, Any] = {"key": key, "extension": images[0], "width": width, "height": height}
    for name, member in places.items():
        row |= {
            f"{name}_offset": member.offset,
            f"{name}_size": member.size,
            f"{name}_crc32": zlib.crc32(content[name]),
        }
    return {**row, "caption_words": [len(caption.split()) for caption in captions]}
