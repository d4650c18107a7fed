"""How much one visitor may ask for at once, on the page and through the API alike."""

from __future__ import annotations

from app import text
from app.form import FormError
from lrdiff.generate_config import GenerateConfig

IMAGES = 64
SIDE = 2048
STEPS = 500
BATCH = 16


def check(config: GenerateConfig, images: int | None = None) -> None:
    """Refuse a generation that would keep the machine from everybody else.

    Args:
        config: What to make.
        images: How many images in all, where it is not what the config alone says.

    Raises:
        FormError: One message per setting.
    """
    count = config.count * len(config.prompt) * len(config.scale) if images is None else images
    problems: dict[str, str] = {}
    if count > IMAGES:
        problems["count"] = text.TOO_MANY_IMAGES.format(count=count, limit=IMAGES)
    for name, limit in (("width", SIDE), ("height", SIDE), ("steps", STEPS), ("batch_size", BATCH)):
        if getattr(config, name) > limit:
            problems[name] = text.TOO_LARGE_SETTING.format(limit=limit)
    if problems:
        raise FormError(problems)
