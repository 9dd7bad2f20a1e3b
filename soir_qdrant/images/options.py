"""What is read, and how much of it at once."""

from __future__ import annotations

from dataclasses import dataclass

from soir_qdrant.errors import ConfigError

MAX_PIXELS = 100_000_000  # an RGB image of 300 MB
MAX_BYTES = 512 * 2**20
MEMORY = 2**30
IGNORE_FILE = ".soirignore"


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What is read, and how much of it at once.

    Attributes:
        exclude: patterns of paths within a folder that are left out, in the syntax of .gitignore; so are those
            in a file .soirignore at its top.
        every: seconds between the frames of a video that are read; None leaves videos out.
        pages: also read the further pages of TIFF files and frames of animations.
        http: also read http:// and https:// addresses, those of private networks excepted.
        private: those of private networks too.
        max_pixels: the largest width x height that is decoded.
        reduce: JPEG files are decoded at a half, a quarter or an eighth of their sides where that leaves so many
            pixels or more, unless the objects are yours; boxes are those of the whole image all the same. None:
            never.
        max_bytes: the largest file that is read.
        memory: bytes that files and pixels take which are read ahead; one image is read in any case.

    Raises:
        ConfigError: for one that is out of range.
    """

    exclude: tuple[str, ...] = ()
    every: float | None = None
    pages: bool = False
    http: bool = False
    private: bool = False
    max_pixels: int = MAX_PIXELS
    reduce: int | None = None
    max_bytes: int = MAX_BYTES
    memory: int = MEMORY

    def __post_init__(self) -> None:
        if isinstance(self.exclude, str):
            raise ConfigError(f"exclude: give a list, such as [{self.exclude!r}]")
        for name in ("every", "max_pixels", "reduce", "max_bytes", "memory"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} {value!r}: must be above 0")
        object.__setattr__(self, "exclude", tuple(self.exclude))


DEFAULT = ReadOptions()
