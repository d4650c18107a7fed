"""From a latent to three feature planes, and from rendered features to a larger picture."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lrdiff.errors import ShapeError
from lrdiff.triplane import functional as maths
from lrdiff.triplane.config import SuperresConfig, TriplaneConfig
from lrdiff.triplane.layers import Linear, Noise, StyledConv, ToColours


class Mapping(nn.Module):
    """z and the camera to w: normalise both, concatenate, fully connected layers, optionally towards the mean w."""

    def __init__(self, config: TriplaneConfig) -> None:
        super().__init__()
        self.config = config
        if config.c:
            self.embed = Linear(config.c, config.w)
        width = config.z + (config.w if config.c else 0)
        for number in range(config.mapping_layers):
            self.add_module(f"fc{number}", Linear(width, config.w, gain=config.mapping_gain, act=True))
            width = config.w
        self.register_buffer("w_avg", torch.zeros(config.w))

    def forward(self, z: Tensor, camera: Tensor | None = None, truncation: float = 1.0) -> Tensor:
        """Return the latents of all layers.

        Args:
            z: [B, z], normal.
            camera: [B, 25], needed where the configuration conditions on it.
            truncation: 1 leaves w alone, 0 gives the mean w.

        Returns:
            [B, latents, w], the same w for all layers.

        Raises:
            ShapeError: z has another size, or a camera is missing.
        """
        config = self.config
        if z.ndim != 2 or z.shape[1] != config.z:
            raise ShapeError(f"z has shape {tuple(z.shape)}; this generator takes [B, {config.z}]")
        x = maths.normalised(z) if config.normalise else z
        if config.c:
            if camera is None and config.condition:
                raise ShapeError("this generator's mapping takes a camera [B, 25]; give one")
            known = camera is not None and config.condition
            seen = camera * config.condition_scale if known and camera is not None else x.new_zeros(len(x), config.c)
            x = torch.cat([x, maths.normalised(self.embed(seen))], 1)
        for number in range(config.mapping_layers):
            x = self.get_submodule(f"fc{number}")(x)
        x = self.get_buffer("w_avg").lerp(x, truncation) if truncation != 1.0 else x
        return x[:, None].expand(-1, config.latents, -1)


class Block(nn.Module):
    """One resolution: up to two styled convolutions and a projection that is added to the picture so far."""

    def __init__(
        self, inputs: int, outputs: int, colours: int, w: int, side: int,
        up: bool = True, noise: bool = True, clamp: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.first, self.up = inputs == 0, up
        self.register_buffer("resample_filter", maths.fir_filter())
        if self.first:
            self.const = nn.Parameter(torch.randn(outputs, side, side))
        else:
            self.conv0 = StyledConv(inputs, outputs, w, side, up, noise, clamp)
        self.conv1 = StyledConv(outputs, outputs, w, side, False, noise, clamp)
        self.torgb = ToColours(outputs, colours, w, clamp)

    def forward(self, x: Tensor | None, picture: Tensor | None, ws: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Return features and picture.

        Args:
            x: Features [B, I, H, W]; None for the first block, which starts from its constant.
            picture: [B, colours, H, W] or None.
            ws: [B, 3, w] for conv0, conv1 and torgb; [B, 2, w] for the first block.
            noise: Whether the learned noise is added.
        """
        rows = iter(ws.unbind(1))
        start = self.const.expand(len(ws), -1, -1, -1) if x is None else self.conv0(x, next(rows), noise)
        made = self.conv1(start, next(rows), noise)
        colours = self.torgb(made, next(rows)).to(ws.dtype)
        if picture is None:
            return made, colours
        if self.up:
            picture = maths.upsampled(picture, self.get_buffer("resample_filter"))
        return made, picture + colours


class Synthesis(nn.Module):
    """Blocks b4, b8, ... that end in the planes, as one picture of 3 x features channels."""

    def __init__(self, config: TriplaneConfig) -> None:
        super().__init__()
        self.sides = [4 * 2**number for number in range(len(config.channels))]
        inputs = 0
        for side, outputs in zip(self.sides, config.channels, strict=True):
            block = Block(inputs, outputs, 3 * config.features, config.w, side, noise=config.noise)
            self.add_module(f"b{side}", block)
            inputs = outputs

    def forward(self, ws: Tensor, noise: Noise = "const") -> Tensor:
        """Map ws [B, latents, w] to [B, 3 F, S, S].

        A block's projection takes the w that the next block begins with, so slices overlap: they start at 0, 1, 3, 5...
        """
        x = picture = None
        for number, side in enumerate(self.sides):
            start, count = (0, 2) if number == 0 else (2 * number - 1, 3)
            x, picture = self.get_submodule(f"b{side}")(x, picture, ws[:, start : start + count], noise)
        assert picture is not None
        return picture


class Superresolution(nn.Module):
    """Two blocks on the rendered features, all with the last w and without noise."""

    def __init__(self, config: SuperresConfig, features: int, w: int) -> None:
        super().__init__()
        self.config = config
        inputs = features
        for number in range(2):
            block = Block(
                inputs, config.channels[number], 3, w, config.sides[number],
                up=config.up[number], clamp=config.clamp,
            )  # fmt: skip
            self.add_module(f"block{number}", block)
            inputs = config.channels[number]
        if config.top_filter:
            self.register_buffer("resample_filter", maths.fir_filter())

    def forward(self, features: Tensor, ws: Tensor, half: bool = False) -> Tensor:
        """Map features [B, F, S, S] and ws [B, N, w] to a picture [B, 3, side, side].

        Args:
            features: Rendered; the first three channels are the raw picture.
            ws: Latents; the last one is used.
            half: Convolve in float16. The picture is summed in float32.
        """
        size = (self.config.input, self.config.input)
        if features.shape[2:] != size:
            features = torch.nn.functional.interpolate(
                features, size, mode="bilinear", align_corners=False, antialias=True
            )
        return self.enlarge(features, ws, half)

    def enlarge(self, features: Tensor, ws: Tensor, half: bool = False) -> Tensor:
        """Map features [B, F, H, W] of a picture, or of a part of one, to [B, 3, H', W'], without a resize first."""
        border, width = self.config.border, features.shape[-1]
        features = torch.nn.functional.pad(features, (border,) * 4, mode="replicate")
        x, picture = features.half() if half else features, features[:, :3]
        last = ws[:, -1:].expand(-1, 3, -1)
        for number in range(2):
            x, picture = self.get_submodule(f"block{number}")(x, picture, last, "none")
        cut = border * picture.shape[-1] // (width + 2 * border)
        return picture[..., cut : picture.shape[-2] - cut, cut : picture.shape[-1] - cut]
