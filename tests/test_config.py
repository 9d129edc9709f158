"""Configs: every recipe loads, what is derived is right, what is wrong is named."""

import math
from pathlib import Path

import pytest
import yaml

from seer_pipe import config as settings
from seer_pipe import section
from seer_pipe.changes import differences
from seer_pipe.errors import UserError
from seer_pipe.models import build_trunk, trunk_names
from seer_pipe.section import mark_of
from seer_pipe.train.build import build_crops

RECIPES = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
SEER = "seer_regnety_256gf"


def recipe(name: str) -> Path:
    return next(path for path in RECIPES if path.stem == name)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_whole(path: Path) -> None:
    config = settings.load(path)
    derived = settings.derive(config, 1_281_167)
    assert config.name == path.stem
    assert config.model.name in trunk_names()
    assert derived.warmup_steps < derived.steps
    assert derived.settled_steps < derived.steps
    assert derived.peak_lr == pytest.approx(config.optimizer.lr * config.train.batch / 256)


def test_there_is_a_recipe_for_every_size_and_method() -> None:
    assert {path.stem for path in RECIPES} == {
        "simclr_cpu", "simclr_imagenette", "simclr_resnet50", "vicreg_cpu", "vicreg_imagenette", "vicreg_resnet50",
        "barlow_twins_cpu", "barlow_twins_imagenette", "barlow_twins_resnet50",
        "byol_cpu", "byol_imagenette", "byol_resnet50",
        "moco_v2_cpu", "moco_v2_imagenette", "moco_v2_resnet50",
        "moco_v3_cpu", "moco_v3_imagenette", "moco_v3_resnet50",
        "simsiam_cpu", "simsiam_imagenette", "simsiam_resnet50",
        "npid_cpu", "npid_imagenette", "npid_resnet50",
        "deepcluster_cpu", "deepcluster_imagenette", "deepcluster_resnet50",
        "sela_cpu", "sela_imagenette", "sela_resnet50",
        "dino_cpu", "dino_imagenette", "dino_resnet50",
        "supervised_cpu", "supervised_imagenette", "supervised_resnet50",
        "weak_labels_cpu", "weak_labels_imagenette", "weak_labels_resnet50",
        "rotation_cpu", "rotation_imagenette", "rotation_resnet50",
        "cpc_cpu", "cpc_imagenette", "cpc_resnet50",
        "jigsaw_cpu", "jigsaw_imagenette", "jigsaw_resnet50",
        "pirl_cpu", "pirl_imagenette", "pirl_resnet50",
        "image_audio_cpu", "image_audio_resnet18", "avid_cpu", "avid_resnet18",
        "avid_r2plus1d18",
        "cma_cpu", "cma_resnet18", "tracking_cpu", "tracking_resnet18", "random_walk_cpu", "random_walk_resnet18",
        "relative_patch_cpu", "relative_patch_imagenette", "relative_patch_resnet50",
        "quickstart", "imagenette_cpu", "imagenette_resnet18", "resnext101_32x8d", "regnety_16gf", "seer_regnety_32gf",
        "seer_regnety_64gf", "seer_regnety_128gf", "seer_regnety_256gf", "seer_10b",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "peak", "final", "warmup", "steps"),
    [
        ("resnext101_32x8d", 4.8, 0.0048, 3120, 312 * 400),  # SwAV: 10 epochs of warm-up from 0.3
        ("seer_regnety_256gf", 9.6, 0.0096, 8000, 122_070),  # SEER: 122 K iterations
        ("seer_10b", 9.3, 0.0093, 5500, 126_008),
    ],
)
def test_published_numbers(name: str, peak: float, final: float, warmup: int, steps: int) -> None:
    config = settings.load(recipe(name))
    derived = settings.derive(config, 1_281_167)
    assert derived.peak_lr == pytest.approx(peak)
    assert derived.peak_lr * config.optimizer.final_lr == pytest.approx(final)
    assert derived.warmup_steps == warmup
    assert derived.steps == steps
    assert derived.objective["freeze_steps"] == 313
    assert derived.chance_loss == pytest.approx(math.log(config.objective.prototypes))


def test_seer_head_fits_its_trunk() -> None:
    import torch

    config = settings.load(recipe(SEER))
    with torch.device("meta"):
        trunk = build_trunk(config.model.name)
    dims = [trunk.width, *config.objective.head.hidden, config.objective.head.dim]
    assert dims == [10444, 8192, 8192, 256]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.bacth=64", r"train\.bacth: no such setting; did you mean train\.batch\?"),
        ("objective.colour=red", r"objective\.colour: no such setting"),
        ("train.batch=0", r"train\.batch: input should be greater than 0, not 0"),
        ("train.batch=many", r"train\.batch: input should be a valid integer.* not 'many'"),
        ("views.augment.flip=1.5", r"views\.augment\.flip: .*less than or equal to 1, not 1\.5"),
        ("views.augment={blur_p: 1, blur_sigma: [0.1, 14]}", "views: blur_sigma 14.0 reaches past a crop of 40 pixels"),
        ("views.crops=[{count: 1, size: 64, scale: [0.5, 1], augment: {blur: 1}}]", r"augment\.blur: no such setting"),
        ("views.crops=[{count: 1, size: 64, scale: [0.5, 1], augment: 3}]", r"views\.crops\.0\.augment: .*not 3"),
        ("views.crops=[3]", r"views\.crops\.0: .*not 3"),
        ("views.augment=3", r"views\.augment: .*not 3"),
        ("train.images=100", "give either images or epochs"),
        ("objective.prototypes=4096", r"objective\.prototypes 4096 is more than .*\(64\)"),
        ("objective.queue=100", r"objective\.queue must be a multiple of train\.batch \(64\)"),
        ("objective.assign=[0,9]", "names crop 9 of 6"),
        ("data=null", "data: .*dictionary.*not None"),
        ("lr=1", r"lr: no such setting; did you mean optimizer\.lr\?"),
        (
            "views.crops=[{count: 1, siez: 64, scale: [0.5, 1]}]",
            r"views\.crops\.0\.siez: .*mean views\.crops\[\]\.size\?",
        ),
        ("probe.label=x", r"probe\.label: .*mean probe\.labels\?"),
        ("views.augment.ratio=[2, 1]", r"views\.augment: ratio must be \[low, high\], not \[2, 1\]"),
        ("views.augment.blur_sigma=[2,0.1]", r"blur_sigma must be \[low, high\]"),
        ("train.batch", "an override is key.path=value"),
        ("train.batch=", "no value; write train.batch=null"),
        ("name.first=x", "name is a value, not a section"),
    ],
)
def test_what_is_wrong_is_named(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        settings.load(recipe("quickstart"), [override])
    assert "\n" not in str(caught.value)


#: (count, size, scale) of the published plans, and those for small images
PLANS = {
    "regnety_16gf": [(2, 224, (0.14, 1)), (6, 96, (0.05, 0.14))],
    "resnext101_32x8d": [(2, 224, (0.14, 1)), (6, 96, (0.05, 0.14))],
    "seer_regnety_256gf": [(2, 224, (0.14, 1)), (4, 96, (0.05, 0.14))],
    "seer_10b": [(2, 160, (0.14, 1)), (4, 96, (0.05, 0.14))],
    "imagenette_resnet18": [(2, 128, (0.14, 1)), (6, 64, (0.05, 0.14))],
}


@pytest.mark.parametrize("name", PLANS)
def test_crop_plans(name: str) -> None:
    specs = build_crops(settings.load(recipe(name)))
    assert [(spec.count, spec.size, spec.scale) for spec in specs] == PLANS[name]
    if name != "imagenette_resnet18":
        assert all(spec.augment == settings.Augment() for spec in specs)  # SwAV's and SEER's


def test_a_crop_has_strengths_of_its_own(tmp_path: Path) -> None:
    """BYOL's two views: what a crop does not set is that of all crops, then and after a run's config is read back."""
    crops = "{count: 1, size: 224, scale: [0.08, 1]"
    asymmetric = [
        "views.augment={jitter: [0.4, 0.4, 0.2, 0.1], blur_p: 1.0, jitter_order: fixed}",
        f"views.crops=[{crops}}}, {crops}, augment: {{blur_p: 0.1, solarise_p: 0.2}}}}]",
    ]
    config = settings.load(recipe("quickstart"), [*asymmetric, "objective.assign=[0, 1]"])
    common = settings.Augment(jitter=(0.4, 0.4, 0.2, 0.1), blur_p=1.0, jitter_order="fixed")
    wanted = [common, common.model_copy(update={"blur_p": 0.1, "solarise_p": 0.2})]
    assert [spec.augment for spec in build_crops(config)] == wanted
    settings.save(config, settings.derive(config, 600), tmp_path / "config.yaml")
    assert settings.load(tmp_path / "config.yaml") == config


#: All settings that every resume may change, and those that none may.
FREE = {"name", "data.path", "data.repeats", "data.sources", "data.threads", "data.ahead", "data.memory_gb",
        "data.cache", "data.max_bad_fraction", "train.device", "train.threads", "train.parallel", "train.shard_within",
        "train.compile", "train.channels_last", "train.cudnn_benchmark", "train.fused_bn", "train.log_every",
        "train.log_to", "train.checkpoint_every", "train.keep",
        "train.keep_every_images", "train.checkpoints", "train.stop_before", "health.max_skips",
        "health.max_rollbacks", "health.rollback_lr", "health.timeout", "probe"}  # fmt: skip
FIXED = ("seed", "data.lanes", "data.window", "data.chunk", "views.", "model.", "objective.", "optimizer.name",
         "optimizer.exclude")  # fmt: skip


def test_what_a_resume_may_change_is_marked_on_the_setting() -> None:
    keys = [key for key, _ in settings.flat(settings.load(recipe("quickstart")).model_dump(mode="json"))]
    marks = {key: mark_of(settings.Config, key) for key in keys}
    assert {key for key, mark in marks.items() if mark == section.FREE} == FREE
    assert {key for key, mark in marks.items() if mark == section.LENGTH} == {"train.images", "train.epochs"}
    never = {key for key, mark in marks.items() if mark is not None and mark.free == "never"}
    assert never == {key for key in keys if key.startswith(FIXED)}
    assert all(mark.why for key, mark in marks.items() if key in never and mark is not None)
    cache = mark_of(settings.Config, "data.cache.gb")
    assert cache == section.FREE, "a setting in a section that may be null has the section's mark"


def test_files_that_are_no_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        settings.load(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match="expected sections"):
        settings.load(tmp_path / "list.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1\n")
    with pytest.raises(UserError, match="not YAML"):
        settings.load(tmp_path / "bad.yaml")


def test_a_run_keeps_its_config_and_what_follows(tmp_path: Path) -> None:
    config = settings.load(recipe("quickstart"), ["optimizer.lr=0.5", "data.path=elsewhere"])
    settings.save(config, settings.derive(config, 600), tmp_path / "config.yaml")
    assert settings.load(tmp_path / "config.yaml") == config
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["derived"]["peak_lr"] == 0.5 * 64 / 256


def test_a_resume_may_change_what_does_not_matter() -> None:
    config = settings.load(recipe("quickstart"))
    free = settings.load(recipe("quickstart"), ["data.threads=7", "train.log_every=3", "data.path=moved"])
    assert differences(config, free) == []
    other = settings.load(recipe("quickstart"), ["train.batch=128", "seed=2"])
    assert list(map(str, differences(config, other))) == [
        "seed (0 in the run, 2 now)",
        "train.batch (64 in the run, 128 now)",
    ]


def test_a_set_too_small_for_a_step_is_refused() -> None:
    with pytest.raises(UserError, match="less than one batch"):
        settings.derive(settings.load(recipe("quickstart")), 10)
