"""`transformers.AutoModel.from_pretrained` for published checkpoints, by the installed package and no remote code.

    import finetune.automodel
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained("USER/NAME")
    tokens = AutoTokenizer.from_pretrained("USER/NAME")(texts, return_tensors="pt", padding=True, truncation=True)
    found = model(tokens["input_ids"], tokens["attention_mask"], pixels)

The class is `pretrain`'s own model in another coat: `from_pretrained` goes through `load_checkpoint`, which checks the
digest of every file. Left out: what else transformers' own classes offer (generation, quantising, `save_pretrained`).

Shapes: B images, Q texts, L tokens, S side of an image in pixels, E embedding.
"""

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig

from finetune.publish.export import MODEL_TYPE
from pretrain.checkpoint import Checkpoint, load_checkpoint
from pretrain.models.interface import ImageInput, TextInput
from shards.errors import UserError

HUB_SETTINGS = {"revision", "token", "trust_remote_code", "adapter_kwargs", "_from_auto", "_commit_hash"}
"""What AutoModel passes on; a revision matters, the rest has no meaning here."""


class DuostreamConfig(PretrainedConfig):
    """config.json of a published checkpoint; config.yaml has all settings."""

    model_type = MODEL_TYPE


class DuostreamModel(nn.Module):
    """The two sides of a published checkpoint."""

    config_class = DuostreamConfig

    def __init__(self, config: DuostreamConfig, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.config, self.checkpoint = config, checkpoint
        self.task = checkpoint.task

    @classmethod
    def from_pretrained(
        cls, place: str | Path, config: DuostreamConfig | None = None, **settings: Any
    ) -> "DuostreamModel":
        """Opens a folder or a hub's repository.

        Raises:
            UserError: a setting of transformers that has no meaning here, or what `load_checkpoint` raises.
        """
        if strange := sorted(settings.keys() - HUB_SETTINGS):
            raise UserError(f"`{strange[0]}` (={settings[strange[0]]}) has no meaning for a {MODEL_TYPE} model")
        revision = settings.get("revision") or settings.get("_commit_hash")
        local = Path(place).is_dir()
        checkpoint = load_checkpoint(place if local or not revision else f"hf:{place}@{revision}")
        return cls(config or DuostreamConfig.from_pretrained(checkpoint.path), checkpoint)

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """int64 [Q, L], [Q, L] -> L2-normalised float [Q, E]."""
        return self.task.model.encode_text(TextInput(input_ids, attention_mask.bool())).embedding_BE

    def get_image_features(self, pixels: Tensor) -> Tensor:
        """uint8 [B, S, S, 3], RGB -> L2-normalised float [B, E]."""
        return self.task.model.encode_image(ImageInput(pixels)).embedding_BE

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pixels: Tensor) -> dict[str, Tensor]:
        """Both embeddings and `similarity`, the cosine of every image with every text, float [B, Q]."""
        text_QE, image_BE = self.get_text_features(input_ids, attention_mask), self.get_image_features(pixels)
        return {"text_embeds": text_QE, "image_embeds": image_BE, "similarity": image_BE @ text_QE.T}


AutoConfig.register(MODEL_TYPE, DuostreamConfig, exist_ok=True)
AutoModel.register(DuostreamConfig, DuostreamModel, exist_ok=True)
