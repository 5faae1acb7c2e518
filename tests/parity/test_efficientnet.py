"""EfficientNets published by `efficientnet_pytorch` in timm's backbones, against that package's own forward pass."""

import pytest
import torch
from efficientnet_pytorch import EfficientNet
from torch import nn

from pretrain.models.config import VisionConfig
from pretrain.models.vision import ImageEncoder
from shards.errors import UserError

SIZE = 64


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A B0 of random weights, also in its norms' statistics, and the file that it was saved to."""
    torch.manual_seed(0)
    network = EfficientNet.from_name("efficientnet-b0").eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    path = tmp_path_factory.mktemp("published") / "efficientnet-b0.pth"
    torch.save(network.state_dict(), path)
    return network, path


def test_the_same_features(published):
    network, path = published
    ours = ImageEncoder(VisionConfig(name="tf_efficientnet_b0", weights=str(path)), SIZE).eval()
    image_BCHW = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        theirs = network.extract_features(image_BCHW)
        torch.testing.assert_close(ours.backbone.forward_features(image_BCHW), theirs, rtol=1e-5, atol=1e-6)


MISFITS = {
    "tf_efficientnet_b1": "[1-9][0-9]* missing",
    "tf_efficientnet_lite0": "0 missing",
    "resnet18": "[1-9][0-9]* missing",
}


@pytest.mark.parametrize("name", MISFITS)
def test_another_model_is_refused(published, name):
    with pytest.raises(UserError, match=rf"`model\.vision\.weights` \(={published[1]}\) does not fit: {MISFITS[name]}"):
        ImageEncoder(VisionConfig(name=name, weights=str(published[1])), SIZE)
