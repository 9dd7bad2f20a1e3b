"""Colours as they look: what an ICC profile says, in sRGB."""

from __future__ import annotations

import io
import logging

from PIL import Image, ImageCms

log = logging.getLogger(__name__)
MODES = {"RGB": "RGB", "RGBA": "RGBA", "CMYK": "RGB"}  # of an image with a profile -> converted


def to_srgb(image: Image.Image, name: str) -> Image.Image:
    """The image in sRGB. One without a profile, with sRGB's, or whose profile cannot be used, as it is."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in MODES:
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return image
        target = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, source, target, outputMode=MODES[image.mode])
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        log.warning("%s: its colour profile cannot be used, the colours are taken for sRGB: %s", name, error)
        return image
    return converted or image
