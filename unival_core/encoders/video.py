"""The image network with a time axis; published as ResNeXt-101 with 32 groups (arXiv 1711.09577)."""

from unival_core.encoders.image import ResNet


class VideoResNet(ResNet):
    """Videos N x 3 x frames x height x width to features N x `config.width` x time x height / stride x width / stride.

    The pooling and every stage but the first halve the number of frames, rounding up.
    """

    dims = 3
