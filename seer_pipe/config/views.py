"""The settings of the views: what is cut out of an image, and how it is augmented."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from seer_pipe.section import Positive, Probability, Rate, Section

BORDER = 0.05  # of the way from a patch to the next, which rounding to pixels may make them share


class Augment(Section):
    """How strongly a crop is augmented; the defaults are SwAV's and SEER's.

    ``jitter`` is (brightness, contrast, saturation, hue) as torchvision's ColorJitter takes it: factors from
    [max(0, 1 - x), 1 + x], and hue shifts from [-x, x] of a turn; the four are applied in an order drawn for each
    crop, as torchvision does, or in this one. ``blur_sigma`` in pixels of the crop. ``ratio`` is the range of width /
    height of the box.
    """

    flip: Probability = Field(
        default=0.5, description="share of the crops that are mirrored; 0 where left and right matter"
    )
    jitter: tuple[Rate, Rate, Rate, Annotated[float, Field(ge=0, le=0.5)]] = Field(
        default=(0.8, 0.8, 0.8, 0.2), description="strength of brightness, contrast, saturation and hue; weaker where "
        "colour is what distinguishes the images"
    )  # fmt: skip
    jitter_p: Probability = Field(default=0.8, description="share of the crops that are jittered")
    jitter_order: Literal["random", "fixed"] = Field(
        default="random",
        description="of the four: drawn for each crop, or as listed; fixed only to follow a recipe that has it",
    )
    grey_p: Probability = Field(default=0.2, description="share of the crops that lose their colour; 0 for grey images")
    channel_p: Probability = Field(
        default=0.0, description="share of the crops, of those with colour, that are seen by one channel alone, in the "
        "place of all three; for patches, whose places the fringes of a lens give away"
    )  # fmt: skip
    blur_p: Probability = Field(default=0.5, description="share of the crops that are blurred")
    blur_sigma: tuple[Rate, Rate] = Field(
        default=(0.1, 2.0), description="lowest and highest sigma, in pixels of the crop; smaller for small crops"
    )
    solarise_p: Probability = Field(
        default=0.0,
        description="share of the crops whose bright half is inverted; for unequal views, in one group of crops",
    )
    ratio: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = Field(
        default=(3 / 4, 4 / 3), description="least and greatest width / height of the box that is cut out"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Augment:
        for name in ("blur_sigma", "ratio"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} must be [low, high], not [{low:g}, {high:g}]")
        return self


class Grid(Section):
    """Patches out of a crop, in rows and columns."""

    side: Annotated[int, Field(ge=2, le=16)] = Field(default=3, description="patches in a row, and in a column")
    patch: Annotated[float, Field(gt=0, lt=16)] = Field(
        default=0.75, description="side of a patch as a share of that of its cell; below 1 there are gaps, above 1 "
        "neighbours overlap, and the outer ones touch the border"
    )  # fmt: skip
    jitter: Probability = Field(
        default=1.0, description="how far a patch moves in its cell: 1 to its borders, 0 stays in its middle"
    )
    scale: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = Field(
        default=(1.0, 1.0), description="least and greatest share of a patch's area that is cut out of it, by a box "
        "drawn for each patch; 1 is all of it"
    )  # fmt: skip

    @property
    def apart(self) -> int:
        """Rows, or columns, from a patch to the next that shares no more than a border with it."""
        step = (self.side - self.patch) / (self.side - 1) if self.patch > 1 else 1.0  # in cells, as in data/grids.py
        return max(1, math.ceil(self.patch / step - BORDER))

    @model_validator(mode="after")
    def _within(self) -> Grid:
        if self.patch >= self.side:
            raise ValueError(f"patch {self.patch:g} is as large as the whole grid: less than side {self.side}")
        if self.scale[0] > self.scale[1]:
            raise ValueError("scale must be [low, high]")
        return self


class Crop(Section):
    """A group of crops that are made alike."""

    count: Positive = Field(description="crops of this group per image; time and memory of a step grow with it")
    size: Annotated[int, Field(ge=8, le=2048)] = Field(
        description="pixels of a side; time and memory grow with its square. Small crops are cheap further views"
    )
    scale: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = Field(
        description="least and greatest share of the image's area that is cut out; a higher least share makes the task "
        "easier, as uncurated images of several things may need"
    )
    layout: Literal["independent", "quarter_turns", "grid", "shuffled_grid"] = Field(
        "independent", description="quarter_turns: each crop four times, turned by 0, 90, 180 and 270 degrees; grid: "
        "patches out of each, row by row; shuffled_grid: in an order that is drawn; for objectives that say so"
    )  # fmt: skip
    grid: Grid = Grid()
    augment: Augment | None = Field(
        None, description="what differs from views.augment for these crops, for methods whose views are unequal"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Crop:
        if self.scale[0] > self.scale[1]:
            raise ValueError("scale must be [low, high]")
        return self

    @property
    def patched(self) -> bool:
        """Whether the network sees patches out of it."""
        return self.layout in ("grid", "shuffled_grid")

    @property
    def seen(self) -> int:
        """Crops that the network sees per picture."""
        return self.count * (self.grid.side**2 if self.patched else 4 if self.layout == "quarter_turns" else 1)

    @property
    def whole(self) -> int:
        """Pixels of a side of the whole crop, in the resolution that the network sees it or its patches in."""
        return round(self.size * self.grid.side / self.grid.patch) if self.patched else self.size


class Sound(Section):
    """The sound around the moment of the picture, as a spectrogram in decibels: 100 columns a second.

    ``linear``: 24 kHz, 257 bands of equal width, as AVID has it (Morgado et al. 2021, arXiv 2004.12943). ``log_mel``:
    16 kHz, windows of 25 ms, bands of equal width in mel. ``level`` and ``spread`` become 0 and 1.
    """

    spectrum: Literal["linear", "log_mel"] = Field("linear", description="linear: AVID's 257 bands at 24 kHz; log_mel: "
                                                   "fewer and wider ones towards high tones, at 16 kHz")  # fmt: skip
    bands: Annotated[int, Field(ge=8, le=100)] = Field(80, description="of log_mel")
    seconds: Annotated[float, Field(ge=0.1, le=60)] = Field(
        2.0, description="that are heard; what the sound lacks of them is silence"
    )
    shift: Rate = Field(
        0.5, description="seconds by which the middle of the sound may be off the moment of the picture"
    )
    gain: tuple[Rate, Rate] = Field((0.9, 1.1), description="least and greatest factor of the loudness")
    level: float = Field(-20.0, description="decibels of a band that become 0; the loudest tone has about 48")
    spread: Annotated[float, Field(gt=0)] = Field(20.0, description="decibels that become 1")

    @model_validator(mode="after")
    def _ordered(self) -> Sound:
        if self.gain[0] > self.gain[1]:
            raise ValueError("gain must be [low, high]")
        return self

    @property
    def rate(self) -> int:
        """Hz that the sound is heard at."""
        return 24_000 if self.spectrum == "linear" else 16_000

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a spectrogram: channel, columns (time), bands (frequency)."""
        return 1, round(100 * self.seconds), 257 if self.spectrum == "linear" else self.bands


class Frames(Section):
    """Several frames of a clip, which follow each other."""

    count: Annotated[int, Field(ge=2, le=32)] = Field(
        4, description="of a clip; time and memory of a step grow with it"
    )
    fps: Annotated[float, Field(gt=0, le=240)] = Field(
        8.0, description="frames per second of those that are taken: fewer are farther apart, and harder to follow"
    )
    joined: bool = Field(
        False, description="true: all frames together are one input, cut, mirrored and coloured alike, for trunks that "
        "take clips, as r2plus1d_18; false: each frame is one, with all of views.crops"
    )  # fmt: skip


class Views(Section):
    """What is cut out of an image, and how it is augmented; of a clip, of the frame that a moment of it shows, or of
    several; of a pair, of its pictures in turn."""

    crops: Annotated[list[Crop], Field(min_length=1)] = Field(
        description="groups of crops: the large ones first, for objectives name crops by their number"
    )
    augment: Augment = Augment()
    sound: Sound | None = Field(None, description="of samples that are a picture or a clip with its sound, for "
                                "objectives that hear it")  # fmt: skip
    pictures: Literal[1, 2] = Field(1, description="2: samples are pairs of pictures, as of tracks in videos, of which "
                                    "the crops are cut in turn: the first of the one, the second of the other, …"
                                    )  # fmt: skip
    frames: Frames | None = Field(
        None, description="samples are clips, of which several frames are seen: each with crops of its own, those of a "
        "group in the order of time, group after group; or joined into clips"
    )  # fmt: skip

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, tree: Any) -> Any:
        """A crop's own strengths are those of all crops but for what it sets itself."""
        common = tree.get("augment", {}) if isinstance(tree, dict) else None
        if not isinstance(common, dict) or not isinstance(tree.get("crops"), list):
            return tree  # the fields' own checks report what is wrong

        def complete(crop: Any) -> Any:
            own = crop.get("augment") if isinstance(crop, dict) else None
            return {**crop, "augment": {**common, **own}} if isinstance(own, dict) else crop

        return tree | {"crops": [complete(crop) for crop in tree["crops"]]}

    @model_validator(mode="after")
    def _blurrable(self) -> Views:
        for crop in self.crops:
            augment = crop.augment or self.augment
            if augment.blur_p > 0 and 3 * max(augment.blur_sigma) > crop.size - 1:
                raise ValueError(f"blur_sigma {max(augment.blur_sigma)} reaches past a crop of {crop.size} pixels")
        return self

    @model_validator(mode="after")
    def _of_pairs(self) -> Views:
        if self.pictures == 2:
            if self.sound is not None:
                raise ValueError("pictures: 2 goes with no sound: pairs of pictures have none")
            if any(crop.layout != "independent" for crop in self.crops):
                raise ValueError("pictures: 2 needs crops of layout independent")
            if self.count < 2:
                raise ValueError("pictures: 2 needs 2 crops or more: of one, the other picture is never seen")
        return self

    @model_validator(mode="after")
    def _of_frames(self) -> Views:
        if self.frames is not None and self.pictures == 2:
            raise ValueError("frames go with pictures: 1: samples are clips")
        if self.clip is None:
            if self.frames is not None and self.sound is not None:
                raise ValueError("frames go with no sound, unless they are joined: true")
        elif any(crop.layout != "independent" for crop in self.crops):
            raise ValueError("frames that are joined need crops of layout independent")
        return self

    @property
    def clip(self) -> Frames | None:
        """The frames of a crop, where it has several."""
        return self.frames if self.frames is not None and self.frames.joined else None

    @property
    def media(self) -> tuple[str, ...]:
        """What the samples may be, as a shard set's manifest has it: clips only where their sound is wanted too."""
        if self.pictures == 2:
            return ("pair",)
        if self.frames is not None:
            return ("video",)
        return ("image",) if self.sound is None else ("image", "video")

    @property
    def largest(self) -> int:
        """Pixels of a side of the largest crop: what a trunk is evaluated at."""
        return max(crop.whole for crop in self.crops)

    @property
    def count(self) -> int:
        """Crops that the network sees per image, pair or clip."""
        return sum(crop.seen for crop in self.crops) * self.moments

    @property
    def moments(self) -> int:
        """Of a sample that are seen, each with all crops."""
        return 1 if self.frames is None or self.frames.joined else self.frames.count

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of what the network gets per image: each crop, in order, and the spectrogram last."""
        frames = () if self.clip is None else (self.clip.count,)
        crops = [(3, *frames, crop.size, crop.size) for crop in self.crops for _ in range(crop.seen * self.moments)]
        return crops if self.sound is None else [*crops, self.sound.shape]
