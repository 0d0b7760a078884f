"""L6: a model as a backbone: feature maps of its stages, as of timm's `create_model(..., features_only=True)`."""

from collections.abc import Sequence
from typing import Any

from minigrad import Tensor, nn
from models.model import ImageModel
from models.summary.cost import output_shapes


class FeatureInfo:
    """Channels, reduction and name of each feature map, under timm's methods."""

    def __init__(self, info: Sequence[dict[str, Any]], out_indices: Sequence[int]) -> None:
        self.info, self.out_indices = list(info), tuple(out_indices)

    def channels(self) -> list[int]:
        """The channels of the returned maps."""
        return [self.info[i]["num_chs"] for i in self.out_indices]

    def reduction(self) -> list[int]:
        """Rows of pixels for a row of each returned map, its stride."""
        return [self.info[i]["reduction"] for i in self.out_indices]

    def module_name(self) -> list[str]:
        """The names of the blocks that return the maps."""
        return [self.info[i]["module"] for i in self.out_indices]


class FeatureNet(nn.Module):
    """Images (B, in_chans, H, W) to a list of feature maps (B, C, H', W').

    Args:
        model: the model, best without a head (`num_classes=0`).
        out_indices: which maps: of a hierarchical model one for each stage, of ViT one for each block, counted from the
            end if negative. An integer n: the last n. None: all stages; of ViT the last three blocks.
    """

    def __init__(self, model: ImageModel, out_indices: Sequence[int] | int | None = None) -> None:
        self.model = model
        levels, names = model.feature_indices(), list(model.blocks_by_name())
        if out_indices is None:
            out_indices = min(3, len(levels)) if model.num_prefix_tokens else len(levels)
        wanted = list(range(-out_indices, 0)) if isinstance(out_indices, int) else list(out_indices)
        outside = [i for i in wanted if not -len(levels) <= i < len(levels)]
        if outside or not wanted:
            raise IndexError(f"out_indices: there are {len(levels)} feature maps, got {out_indices!r}")
        chosen = sorted({i % len(levels) for i in wanted})
        shapes = output_shapes(model, levels)
        info = [
            {"num_chs": C, "reduction": reduction, "module": names[level], "index": i}
            for i, (level, (_, C, _, _), reduction) in enumerate(
                zip(levels, shapes, model.feature_reductions(), strict=True)
            )
        ]
        self.feature_info = FeatureInfo(info, chosen)
        self.indices = [levels[i] for i in chosen]

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.model.forward_intermediates(x, self.indices, stop_early=True, intermediates_only=True)
