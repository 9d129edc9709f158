"""The objectives that the contract is held to, each as small as it goes."""

from dataclasses import dataclass, field
from typing import Any

from seer_pipe.quickstart.draw import KINDS

BATCH = 8


@dataclass(frozen=True)
class Case:
    """An objective with views that go with it, numbers of crops that do not, what float64 needs otherwise, and what the
    doctor finds wrong with so small a batch."""

    objective: dict[str, Any]
    crops: int
    wrong: tuple[int, ...]
    exact: dict[str, Any] | None = None
    problem: str = ""
    layout: str = "independent"
    patches: bool = False  # of a shuffled grid, after the crops
    grid: dict[str, Any] = field(default_factory=dict)
    norm: str = "batch"  # of the trunk
    sound: dict[str, Any] | None = None
    pictures: int = 1  # of a sample
    frames: dict[str, Any] | None = None

    @property
    def trunk(self) -> str:
        return "tiny_clips" if self.frames and self.frames.get("joined") else "tiny"


#: Frames that are one input, of a trunk that takes clips.
JOINED = {"count": 3, "fps": 8, "joined": True}
#: Of objectives that hear.
PAIRED: dict[str, Any] = {"sound_model": "tiny", "head": {"hidden": [16], "dim": 8}}
HEARD = {"spectrum": "log_mel", "bands": 16, "seconds": 0.2}
CASES = {
    "dino": Case({"name": "dino", "head": {"hidden": [16], "dim": 8}, "outputs": 12, "freeze_images": 8}, 3, (1,)),
    "swav": Case(
        {"name": "swav", "head": {"hidden": [16], "dim": 8}, "prototypes": 12, "queue": 16},
        3,
        (1,),
        {"queue": 0, "prototypes": 8},
    ),
    "barlow_twins": Case({"name": "barlow_twins", "head": {"hidden": [16], "dim": 6}, "norm_rate": 0.5}, 3, (1,)),
    "simclr": Case({"name": "simclr", "head": {"hidden": [16], "dim": 8}}, 3, (1,), problem="7 other images"),
    "vicreg": Case({"name": "vicreg", "head": {"hidden": [16], "dim": 12}}, 3, (1,)),
    "simsiam": Case({"name": "simsiam", "head": {"hidden": [16], "dim": 8}, "predictor": 4}, 3, (1,)),
    "byol": Case({"name": "byol", "head": {"hidden": [16], "dim": 8}, "predictor": 16}, 3, (1,)),
    "moco_v2": Case(
        {"name": "moco_v2", "head": {"hidden": [16], "dim": 8, "batch_norm": False}, "queue": 20, "targets": [0, 1]},
        2,
        (1,),
    ),
    "npid": Case(
        {"name": "npid", "head": {"hidden": [16], "dim": 8}, "negatives": 6, "temperature": 0.2},
        2,
        (),
        {"negatives": 2000},  # few of a thousand images have rows
    ),
    "deepcluster": Case(
        {"name": "deepcluster", "head": {"hidden": [16], "dim": 8}, "prototypes": 3, "heads": 3, "refresh_images": 16},
        3,
        (1,),
    ),
    "sela": Case(
        {
            "name": "sela",
            "head": {"hidden": [16], "dim": 8},
            "prototypes": 4,
            "heads": 3,
            "refresh_images": 16,
            "ring": 20,
        },
        3,
        (1,),
    ),
    "supervised": Case({"name": "supervised", "vocabulary": "", "classes": len(KINDS)}, 1, ()),
    "weak_labels": Case({"name": "weak_labels", "vocabulary": "", "classes": len(KINDS), "loss": "sigmoid"}, 2, ()),
    "rotation": Case({"name": "rotation"}, 1, (), layout="quarter_turns"),
    "jigsaw": Case({"name": "jigsaw", "permutations": 5, "patch_dim": 8}, 1, (), layout="shuffled_grid"),
    "cpc": Case(
        {"name": "cpc", "offsets": [2, 3], "dim": 8, "hidden": 16, "blocks": 2},
        1,
        (),
        layout="grid",
        grid={"side": 4, "patch": 1.6},
        norm="layer",
    ),
    "relative_patch": Case({"name": "relative_patch", "hidden": 8}, 1, (), layout="grid"),
    "pirl": Case(
        {"name": "pirl", "dim": 8, "negatives": 6, "temperature": 0.2}, 1, (), {"negatives": 2000}, patches=True
    ),
    "image_audio": Case(
        {"name": "image_audio", **PAIRED},
        2,
        (),
        problem="7 other samples",
        sound=HEARD,
    ),
    "image_audio_queued": Case(
        {
            "name": "image_audio",
            **PAIRED,
            "queue": 20,
            "positives": 3,
            "positives_after": 3 * BATCH,
        },
        2,
        (),
        problem="19 other samples",
        sound=HEARD,
    ),
    "avid": Case(
        {
            "name": "avid",
            **PAIRED,
            "negatives": 6,
            "temperature": 0.2,
        },
        2,
        (),
        {"negatives": 2000},
        sound=HEARD,
    ),
    "cma": Case(
        {
            "name": "cma",
            **PAIRED,
            "negatives": 6,
            "within_negatives": 4,
            "positives": 3,
            "temperature": 0.2,
            "refresh_images": 16,
        },
        2,
        (),
        {"negatives": 2000, "within_negatives": 1000},
        sound=HEARD,
    ),
    "tracking": Case(
        {"name": "tracking", "head": {"hidden": [16], "dim": 8, "batch_norm": False}, "hard_after": 3 * BATCH},
        2,
        (3,),
        {"hard_after": BATCH},
        pictures=2,
    ),
    "random_walk": Case(
        {"name": "random_walk", "dim": 8},
        1,
        (),
        layout="grid",
        grid={"side": 2, "patch": 1.2, "scale": [0.7, 0.9]},
        frames={"count": 3},
    ),
    "simclr_of_clips": Case(
        {"name": "simclr", "head": {"hidden": [16], "dim": 8}}, 2, (), problem="7 other images", frames=JOINED
    ),
    "avid_of_clips": Case(
        {"name": "avid", **PAIRED, "negatives": 6, "temperature": 0.2},
        2,
        (),
        {"negatives": 2000},
        sound=HEARD,
        frames=JOINED,
    ),
    "moco_v3": Case({"name": "moco_v3", "head": {"hidden": [16], "dim": 8}, "predictor": 16}, 2, (1,)),
    "align": Case({"name": "align", "dim": 8}, 2, (1, 3, 8)),
}
