"""Which checkpoint something was made with: codes and embeddings of other weights mean nothing together."""

from finetune.facts import run_name
from pretrain.checkpoint import EMA, Checkpoint
from pretrain.hub import hub_place
from pretrain.settings import Section
from shards.errors import UserError


class MadeWith(Section):
    """The checkpoint: where it lay, and the sha256 of its weights."""

    place: str
    digest: str
    name: str
    step: int

    @classmethod
    def of(cls, checkpoint: Checkpoint, place: str) -> "MadeWith":
        """The place is the checkpoint itself: a run folder's latest changes, and so does a hub's branch."""
        path, hub = checkpoint.path, hub_place(place)
        lasting = hub.pinned(path.name) if hub else str(path.resolve() / (EMA if checkpoint.weights == EMA else ""))
        return cls(place=lasting, digest=checkpoint.digest, name=run_name(checkpoint), step=checkpoint.step)

    def check(self, checkpoint: Checkpoint, what: str) -> None:
        """Raises UserError where `checkpoint` has other weights; `what` names the thing made, as `index` (=PATH)."""
        if checkpoint.digest != self.digest:
            raise UserError(
                f"{what} was made with weights {self.digest[:12]} ({self.name}, step {self.step}), but "
                f"{checkpoint.path} has {checkpoint.digest[:12]}: make it again"
            )
