"""What a tri-plane generator is made of, and the published configurations. No torch here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from lrdiff.errors import ConfigError


@dataclass(frozen=True, slots=True)
class SuperresConfig:
    """The two blocks that enlarge the rendered features.

    Attributes:
        input: Side to which features and raw picture are resized first, in pixels.
        channels: Output channels of the two blocks.
        up: Whether each block doubles the side.
        top_filter: Whether the state dict has one more filter at its top (every published variant except 8XDC).
        clamp: Bound on every convolution's output, which keeps half precision finite.
        border: Pixels by which features are continued beyond their edges first, and the result is cut, so that no frame
            is seen; 0 in the publication, which pads with zeros.
    """

    input: int
    channels: tuple[int, int]
    up: tuple[bool, bool] = (True, True)
    top_filter: bool = False
    clamp: float = 256.0
    border: int = 0

    @property
    def sides(self) -> tuple[int, int]:
        """Output sides of the two blocks."""
        first = self.input * (2 if self.up[0] else 1)
        return first, first * (2 if self.up[1] else 1)


@dataclass(frozen=True, slots=True)
class RenderConfig:
    """How rays are sampled and summed.

    Attributes:
        coarse: Depths of the first pass.
        fine: Further depths where the first pass found something; 0 leaves the second pass out.
        near: Where a ray begins, in world units from the camera.
        far: Where it ends.
        box: Side of the cube that the planes cover, in world units.
        white: Whether what a ray does not hit is white (else black).
        legacy_axes: Sample (x, y), (x, z), (z, x) as the published weights were trained, instead of (x, y), (x, z),
            (y, z).
        density_scale: Factor on the density, 1 in the publication.
        side: Rendered side before super-resolution, in pixels.
    """

    coarse: int = 48
    fine: int = 48
    near: float = 2.25
    far: float = 3.3
    box: float = 1.0
    white: bool = False
    legacy_axes: bool = False
    density_scale: float = 1.0
    side: int = 128


@dataclass(frozen=True, slots=True)
class TriplaneConfig:
    """Sizes of a generator. The defaults are those of the publication at 512 px.

    Attributes:
        z: Size of the latent.
        w: Size of the mapped latent.
        c: Size of the camera vector that conditions the mapping; 0 conditions on nothing.
        mapping_layers: Fully connected layers after the embedding.
        mapping_gain: Learning-rate multiplier of these layers.
        condition: False feeds zeros in place of the camera.
        condition_scale: Factor on the camera vector.
        normalise: Whether z is brought to a mean square of 1 first, which forgets its length.
        channels: Channels at 4, 8, 16, ... pixels; the last entry is the side of the planes.
        features: Channels of each of the three planes.
        hidden: Width of the decoder.
        colours: Channels that the decoder gives beside the density; the first three are the raw picture.
        decoder_gain: Learning-rate multiplier of the decoder.
        noise: Whether convolutions of the backbone add learned noise.
        superres: The blocks after rendering, or None.
        render: How rays are sampled.
        radius: Distance of the usual camera from the pivot.
        pivot: Point that the usual camera looks at.
        focal: Focal length in picture sides.
        gains: (weight gain, bias gain) of fully connected layers by name, where a file has other ones.
    """

    z: int = 512
    w: int = 512
    c: int = 25
    mapping_layers: int = 2
    mapping_gain: float = 0.01
    condition: bool = True
    condition_scale: float = 1.0
    normalise: bool = True
    channels: tuple[int, ...] = (512, 512, 512, 512, 512, 256, 128)
    features: int = 32
    hidden: int = 64
    colours: int = 32
    decoder_gain: float = 1.0
    noise: bool = True
    superres: SuperresConfig | None = None
    render: RenderConfig = RenderConfig()
    radius: float = 2.7
    pivot: tuple[float, float, float] = (0.0, 0.0, 0.0)
    focal: float = 2985.29 / 700
    gains: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.channels or min(self.channels) < 1:
            raise ConfigError(f"channels: {self.channels} must name at least one size, all of them positive")
        if self.c not in (0, 25):
            raise ConfigError(f"c: {self.c} is no camera vector; 25 conditions on a camera, 0 on nothing")
        if self.colours < 3:
            raise ConfigError(f"colours: {self.colours} leaves no room for red, green and blue; give at least 3")
        if not 0 < self.render.near < self.render.far:
            raise ConfigError(f"render: near {self.render.near} must be above 0 and below far {self.render.far}")
        if self.render.coarse < 4 or self.render.fine < 0:
            raise ConfigError(f"render: coarse {self.render.coarse} must be over 3, fine {self.render.fine} 0 or more")

    @property
    def plane_side(self) -> int:
        """Side of the planes, in cells."""
        return 4 * 2 ** (len(self.channels) - 1)

    @property
    def latents(self) -> int:
        """How many w a picture takes: two at 4 px, two more at every doubling."""
        return 2 * len(self.channels)

    @property
    def side(self) -> int:
        """Side of the finished picture, in pixels."""
        return self.superres.sides[1] if self.superres else self.render.side


def to_json(config: TriplaneConfig) -> dict[str, Any]:
    """Return a configuration as plain JSON values; `from_json` takes it back."""
    return asdict(config)


def from_json(record: dict[str, Any]) -> TriplaneConfig:
    """Return the configuration of a record.

    Raises:
        ConfigError: A name is unknown or a value does not fit.
    """
    values = dict(record)
    try:
        for name, kind in (("superres", SuperresConfig), ("render", RenderConfig)):
            if values.get(name) is not None:
                values[name] = kind(**{key: _tuples(value) for key, value in values[name].items()})
        if "gains" in values:
            values["gains"] = {name: tuple(pair) for name, pair in values["gains"].items()}
        return TriplaneConfig(**{name: _tuples(value) for name, value in values.items()})
    except (TypeError, AttributeError) as error:
        known = ", ".join(item.name for item in fields(TriplaneConfig))
        raise ConfigError(f"not a generator's configuration ({error}); its names are {known}") from error


def eg3d_config(name: str) -> TriplaneConfig:
    """Return a published configuration: "ffhq512", "afhq512" or "cars128" (EG3D, arXiv 2112.07945).

    Raises:
        ConfigError: There is no such configuration.
    """
    faces = RenderConfig(legacy_axes=True)
    known = {
        "ffhq512": TriplaneConfig(superres=SuperresConfig(128, (256, 128)), render=faces, pivot=(0.0, 0.0, 0.2)),
        "afhq512": TriplaneConfig(
            superres=SuperresConfig(128, (128, 64), top_filter=True), render=faces, pivot=(0.0, 0.0, -0.06)
        ),
        "cars128": TriplaneConfig(
            superres=SuperresConfig(64, (128, 64), up=(False, True), top_filter=True),
            render=RenderConfig(coarse=64, fine=64, near=0.1, far=2.6, box=1.6, white=True, legacy_axes=True, side=64),
            condition=False,
            radius=1.7,
            focal=131.25 / 128,
        ),
    }
    if name not in known:
        raise ConfigError(f"unknown configuration {name!r}; known are {', '.join(known)}")
    return known[name]


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
