"""The commands `pretrain import` and `pretrain export`."""

from pathlib import Path
from typing import Annotated

import typer

from shards.errors import UserError

AUTHORS_OWN = "or an authors' own: albef, blip, meter, oscar, uniter, vilt, vinvl"
Allow = Annotated[
    list[str] | None, typer.Option(help="A tensor that may be left over or missing; `*` for any end. Repeatable.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what this command wrote there before.")]


def import_(
    source: Annotated[Path, typer.Option("--from", help="A published folder, or a file of the authors' own.")],
    out: Annotated[Path, typer.Option(help="The checkpoint folder to write.")],
    kind: Annotated[str, typer.Option("--format", help=f"transformers, open_clip, {AUTHORS_OWN}.")] = "transformers",
    allow: Allow = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Its tokenizer, where the folder has none.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="What an authors' file holds; else configs/systems/FORMAT.yaml.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Turn a published checkpoint into one of ours, every tensor by name.

    Example: pretrain import --format open_clip --from downloads/ViT-B-32 --out runs/clip-b32
    """
    from pretrain.models.convert.importing import Request, import_checkpoint

    found = import_checkpoint(Request(source, kind, allow or [], tokenizer, config), out, overwrite)
    typer.echo(f"checkpoint: {out} ({found.parameters / 1e6:.1f}M parameters)")
    if found.fresh:
        typer.echo(f"starts anew: {len(found.fresh)} tensors (first {found.fresh[0]})")


def export(
    ckpt: Annotated[str, typer.Option(help="A checkpoint or run folder, or hf:USER/NAME.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    kind: Annotated[str, typer.Option("--format", help="Whose: transformers, or open_clip.")] = "transformers",
    part: Annotated[str, typer.Option(help="all, or text: the text encoder alone.")] = "all",
    allow: Allow = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a checkpoint as a folder that `transformers` or `open_clip` loads without our code.

    Example: pretrain export --ckpt runs/blip --out exported/blip
    """
    if kind not in ("transformers", "open_clip"):
        raise UserError(f"`format` (={kind}) must be transformers or open_clip")
    if part not in ("all", "text") or (part == "text" and (kind == "open_clip" or allow)):
        raise UserError(f"`part` (={part}) must be all, or text with the format transformers and nothing to allow")
    from pretrain.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(ckpt)
    if kind == "open_clip":
        from pretrain.models.convert.exporting_open_clip import export_open_clip

        export_open_clip(checkpoint, out, allow or [], overwrite)
        typer.echo(f"{out}: every tensor read back as it was")
        return
    from pretrain.models.convert.exporting import export_text, export_transformers

    if part == "text":
        export_text(checkpoint, out, overwrite)
        typer.echo(f"{out}: the text encoder, as it is")
        return
    apart = export_transformers(checkpoint, out, allow or [], overwrite)
    typer.echo(f"{out}: outputs differ by at most {apart:.1e}")
