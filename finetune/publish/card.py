"""The model card: what the checkpoint says of itself, what was measured, and what its publisher states."""

import datetime
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from finetune.pages import render
from finetune.results import Results
from pretrain.checkpoint import Checkpoint
from shards.errors import UserError

RECALLS = ("r1", "r5", "r10")
LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
NO_LIMITATIONS = (
    "The publisher states none beyond these: it knows what its training pairs show and say, and their biases; figures "
    "hold for the data they were measured on; scores are for ranking and are no probabilities; it was not examined for "
    "decisions about people."
)


@dataclass(frozen=True)
class Statements:
    """What no file can know. `licence` is the weights', as an SPDX name in lower case; `data_licence` the pairs'."""

    licence: str
    data: str
    data_licence: str
    limitations: str = ""
    citation: str = ""
    train_command: str = ""

    def check(self) -> None:
        """Raises UserError where one that is needed is missing, naming the option."""
        if not LICENCE.fullmatch(self.licence):
            raise UserError(
                f"`--license` (={self.licence}) must name the weights' licence, such as apache-2.0 or other"
            )
        for option, text in (("--data", self.data), ("--data-license", self.data_licence)):
            if not text.strip():
                raise UserError(f"`{option}` must say it in words: nobody can use weights of unknown origin")


def model_card(checkpoint: Checkpoint, results: Sequence[Results], repo: str, statements: Statements) -> str:
    """README.md with the front matter that hubs read."""
    return render(
        "model_card.md",
        front=front_matter(results, repo, statements),
        repo=repo,
        model=checkpoint.config.model,
        objectives=list(checkpoint.task.objectives),
        parameters=sum(parameter.numel() for parameter in checkpoint.task.parameters()),
        step=checkpoint.step,
        digest=checkpoint.digest,
        max_tokens=checkpoint.config.data.max_tokens,
        results=results,
        commands=[reproducing_command(one, repo) for one in results],
        statements=statements,
        limitations=statements.limitations.strip() or NO_LIMITATIONS,
        citation=statements.citation.strip() or default_citation(results, repo),
    )


def front_matter(results: Sequence[Results], repo: str, statements: Statements) -> str:
    """YAML; `model-index` in the form that hubs draw tables from."""
    values = {
        "license": statements.licence,
        "library_name": "duostream",
        "tags": ["image-text-retrieval", "vision-language", "duostream"],
        "model-index": [{"name": repo.split("/")[-1], "results": [_indexed(one) for one in results]}],
    }
    if not results:
        del values["model-index"]
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _indexed(results: Results) -> dict[str, object]:
    directions = (("image_to_text", results.i2t), ("text_to_image", results.t2i))
    recalls = [
        {"type": "recall", "name": f"{name} R@{recall[1:]}", "value": round(getattr(way.pessimistic, recall), 2)}
        for name, way in directions
        for recall in RECALLS
    ]
    return {
        "task": {"type": "image-text-retrieval"},
        "dataset": {"name": results.data.name, "type": results.data.dataset},
        "metrics": [*recalls, {"type": "rsum", "name": "RSUM", "value": round(results.rsum.pessimistic, 2)}],
    }


def reproducing_command(results: Results, repo: str) -> str:
    """The command that measured, on the published checkpoint in place of the local one."""
    words = shlex.split(results.command)
    for place, word in enumerate(words):
        if word == "--ckpt" and place + 1 < len(words):
            words[place + 1] = f"hf:{repo}"
        elif word.startswith("--ckpt="):
            words[place] = f"--ckpt=hf:{repo}"
    return shlex.join(words)


def default_citation(results: Sequence[Results], repo: str) -> str:
    """BibTeX for the repository itself, of the year in which it was measured."""
    year = results[0].date[:4] if results else str(datetime.datetime.now(datetime.UTC).year)
    owner, name = repo.split("/")
    key = re.sub(r"[^a-z0-9]+", "-", repo.lower())
    fields = {"author": owner, "title": name, "year": year, "note": f"Model, {repo}"}
    lines = ",\n".join(f"  {field} = {{{value}}}" for field, value in fields.items())
    return f"@misc{{{key},\n{lines}\n}}"
