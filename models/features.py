"""L6: a model as a backbone: feature maps of its stages, as of timm's `create_model(..., features_only=True)`."""

from collections.abc import Sequence
from typing import Any

from minigrad import Tensor, nn
from models.model import ImageModel
from models.summary.cost import output_shapes

Index = int | Sequence[int] | None


class FeatureInfo:
    """Channels, reduction and name of each feature map, under timm's methods: of the returned maps, or with `idx` of a
    map, or of several, among all maps. `info[i]` has all entries of map i."""

    def __init__(self, info: Sequence[dict[str, Any]], out_indices: Sequence[int]) -> None:
        self.info, self.out_indices = list(info), tuple(out_indices)

    def get(self, key: str, idx: Index = None) -> Any:
        """An entry, such as `num_chs`."""
        if isinstance(idx, int):
            return self.info[idx][key]
        return [self.info[i][key] for i in (self.out_indices if idx is None else idx)]

    def channels(self, idx: Index = None) -> Any:
        """The channels of the maps."""
        return self.get("num_chs", idx)

    def reduction(self, idx: Index = None) -> Any:
        """Rows of pixels for a row of each map, its stride."""
        return self.get("reduction", idx)

    def module_name(self, idx: Index = None) -> Any:
        """The names of the blocks that return the maps."""
        return self.get("module", idx)

    def get_dicts(self, keys: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """All entries of the returned maps, or those of these keys."""
        return [{key: self.info[i][key] for key in keys or self.info[i]} for i in self.out_indices]

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.info[i]

    def __len__(self) -> int:
        return len(self.info)


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
