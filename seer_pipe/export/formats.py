"""What each library expects to find beside the weights, and the few lines that load them there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from seer_pipe.errors import UserError
from seer_pipe.export.preprocess import Preprocessing
from seer_pipe.models import Trunk
from seer_pipe.models.regnet import REGNETS, SE_RATIO, STEM_WIDTH
from seer_pipe.models.resnet import RESNETS
from seer_pipe.models.trunk import OWN

Json = dict[str, Any]


@dataclass(frozen=True)
class Format:
    """One library's layout of a folder."""

    library: str  # whose names the tensors get
    title: str  # of the layout, for the model card
    files: Callable[[Trunk, Preprocessing], dict[str, Json]]  # JSON files; a trunk it cannot hold is a UserError
    snippet: Callable[[Trunk, Preprocessing], str]  # Python, run inside the folder, that ends with a `model`
    weights: str = "model.safetensors"
    transform: str = ""  # Python in which the library's own preprocessing makes a ``transform``, where it has one
    prefix: str = ""  # before every name of the trunk's tensors


_TIMM = {  # timm's regnety_008 and regnety_080 are pycls' models; the _tv ones are torchvision's and ours
    "regnety_200mf": "regnety_002",
    "regnety_400mf": "regnety_004",
    "regnety_800mf": "regnety_008_tv",
    "regnety_1_6gf": "regnety_016",
    "regnety_3_2gf": "regnety_032",
    "regnety_8gf": "regnety_080_tv",
    "regnety_16gf": "regnety_160",
    "regnety_32gf": "regnety_320",
    "regnety_64gf": "regnety_640",
    "regnety_128gf": "regnety_1280",
    "regnety_256gf": "regnety_2560",
    **{name: name for name in RESNETS},
}
_NOT_IN_TORCHVISION = {"regnety_200mf", "regnety_64gf", "regnety_256gf", "regnety_10b"}  # its class makes them all


def _refuse(trunk: Trunk, library: str, instead: str) -> UserError:
    norm = " and LayerNorm" if trunk.norm_kind == "layer" else ""
    return UserError(f"{library} has no {trunk.name} with the {trunk.stem_kind} stem{norm}: export it as {instead}")


def _is_usual(trunk: Trunk) -> bool:
    """Whether it has the stem and the norms that all libraries know."""
    return trunk.stem_kind == "imagenet" and trunk.norm_kind == "batch"


def _own_config(trunk: Trunk, pre: Preprocessing) -> dict[str, Json]:
    config = {
        "trunk": trunk.name,
        "stem": trunk.stem_kind,
        "norm": trunk.norm_kind,
        "width": trunk.width,
        "input_size": list(pre.shape),
        **({} if pre.frames is None else {"fps": pre.frames[1]}),
        "resize": pre.resize,
        "interpolation": "bilinear",
        "mean": list(pre.mean),
        "std": list(pre.std),
    }
    return {"config.json": config}


def _torchvision_snippet(trunk: Trunk, pre: Preprocessing) -> str:
    norm = "norm_layer=lambda channels: torch.nn.GroupNorm(1, channels)" if trunk.norm_kind == "layer" else ""
    if trunk.takes_clips:
        lines = ["import torchvision", "", f"model = torchvision.models.video.{trunk.name}()"]
        if norm:
            lines += [
                "for name, layer in list(model.named_modules()):",
                "    if isinstance(layer, torch.nn.BatchNorm3d):",
                "        model.set_submodule(name, torch.nn.GroupNorm(1, layer.num_features))",
            ]
    elif trunk.name in _NOT_IN_TORCHVISION:
        p = REGNETS[trunk.name]
        lines = [
            "from torchvision.models.regnet import BlockParams, RegNet",
            "",
            f"params = BlockParams.from_init_params(depth={p.depth}, w_0={p.w_0}, w_a={p.w_a}, w_m={p.w_m},",
            f"                                      group_width={p.group_width}, se_ratio={SE_RATIO})",
            f"model = RegNet(params{norm and f', {norm}'})",
        ]
    else:
        name = trunk.name.replace("regnety_", "regnet_y_")
        lines = ["import torchvision", "", f"model = torchvision.models.{name}({norm})"]
    if trunk.stem_kind == "small":
        lines += [
            "model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)  # the stem for small images",
            "model.maxpool = torch.nn.Identity()",
        ]
    return "\n".join(
        [
            "import torch",
            "from safetensors.torch import load_file",
            *lines,
            "model.fc = torch.nn.Identity()  # features; your classifier goes here",
            'model.load_state_dict(load_file("model.safetensors"))',
        ]
    )


def _timm_files(trunk: Trunk, pre: Preprocessing) -> dict[str, Json]:
    if trunk.name not in _TIMM or not _is_usual(trunk):
        raise _refuse(trunk, "timm", "torchvision")
    regnet = trunk.name in REGNETS
    config = {
        "architecture": _TIMM[trunk.name],
        "num_classes": 0,
        "num_features": trunk.width,
        "pretrained_cfg": {
            "custom_load": False,
            **pre.timm(),
            "num_classes": 0,
            "pool_size": [-(-pre.size // 32)] * 2,
            "first_conv": "stem.conv" if regnet else "conv1",
            "classifier": "head.fc" if regnet else "fc",
        },
    }
    return {"config.json": config}


def _timm_snippet(trunk: Trunk, pre: Preprocessing) -> str:
    return """import timm

# num_classes=10 adds a classifier, features_only=True gives the feature maps of every stage;
# Transformers opens this folder too: AutoModel.from_pretrained(".")
model = timm.create_model("local-dir:.", pretrained=True, num_classes=0)"""


def _huggingface_files(trunk: Trunk, pre: Preprocessing) -> dict[str, Json]:
    if not _is_usual(trunk):
        raise _refuse(trunk, "Transformers", "torchvision")
    config: Json = {
        "num_channels": 3,
        "hidden_sizes": [width for width, _ in trunk.stages],
        "depths": [depth for _, depth in trunk.stages],
        "hidden_act": "relu",
    }
    if trunk.name in REGNETS:
        config |= {
            "architectures": ["RegNetModel"],
            "model_type": "regnet",
            "embedding_size": STEM_WIDTH,
            "groups_width": REGNETS[trunk.name].group_width,
            "layer_type": "y",
            "downsample_in_first_stage": True,
        }
    else:
        params = RESNETS[trunk.name]
        if (params.groups, params.width_per_group) != (1, 64):
            raise _refuse(trunk, "Transformers' ResNet", "timm, which Transformers opens too")
        config |= {
            "architectures": ["ResNetModel"],
            "model_type": "resnet",
            "embedding_size": 64,
            "layer_type": "bottleneck" if params.bottleneck else "basic",
            "downsample_in_first_stage": False,
            "downsample_in_bottleneck": False,
        }
    return {"config.json": config, "preprocessor_config.json": pre.transformers()}


def _huggingface_snippet(trunk: Trunk, pre: Preprocessing) -> str:
    return """from transformers import AutoModel

# AutoImageProcessor prepares images; AutoModelForImageClassification adds a classifier
model = AutoModel.from_pretrained(".")  # features: model(images).pooler_output.flatten(1)"""


def _detectron2_files(trunk: Trunk, pre: Preprocessing) -> dict[str, Json]:
    if not _is_usual(trunk):
        raise _refuse(trunk, "detectron2", "torchvision")
    return _own_config(trunk, pre)


def _detectron2_snippet(trunk: Trunk, pre: Preprocessing) -> str:
    if trunk.name in REGNETS:
        return f"""from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling.backbone.regnet import AnyNet, ResBottleneckBlock, SimpleStem
from torch.nn import ReLU

model = AnyNet(
    stem_class=SimpleStem, stem_width={STEM_WIDTH}, block_class=ResBottleneckBlock,
    depths={[depth for _, depth in trunk.stages]}, widths={[width for width, _ in trunk.stages]},
    group_widths={[REGNETS[trunk.name].group_width] * 4}, strides=[2, 2, 2, 2],
    bottleneck_ratios=[1.0] * 4, se_ratio={SE_RATIO}, activation_class=ReLU, norm="SyncBN",
    out_features=["s1", "s2", "s3", "s4"],
)
DetectionCheckpointer(model).load("model.pth")"""
    params = RESNETS[trunk.name]
    scaled = {"MEAN": pre.mean, "STD": pre.std}
    pixels = "\n".join(
        f"cfg.MODEL.PIXEL_{name} = {[round(255 * value, 3) for value in values]}" for name, values in scaled.items()
    )
    return f"""from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone

cfg = get_cfg()
cfg.MODEL.RESNETS.DEPTH = {3 * sum(params.depths) + 2 if params.bottleneck else 2 * sum(params.depths) + 2}
cfg.MODEL.RESNETS.NUM_GROUPS = {params.groups}
cfg.MODEL.RESNETS.WIDTH_PER_GROUP = {params.width_per_group}
cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = {64 * params.expansion}
cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
cfg.MODEL.RESNETS.NORM = "SyncBN"
cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
cfg.INPUT.FORMAT = "RGB"
{pixels}
model = build_backbone(cfg)
DetectionCheckpointer(model).load("model.pth")"""


def _full_snippet(trunk: Trunk, pre: Preprocessing) -> str:
    return """from safetensors.torch import load_file
from seer_pipe.export import load_backbone

model = load_backbone(".")  # the trunk
tensors = load_file("model.safetensors")
head = {name.removeprefix("head."): t for name, t in tensors.items() if name.startswith("head.")}"""


_TIMM_TRANSFORM = """import timm

model = timm.create_model("local-dir:.", pretrained=True, num_classes=0)
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))  # for images of Pillow"""
_HUGGINGFACE_TRANSFORM = """from transformers import AutoImageProcessor

transform = AutoImageProcessor.from_pretrained(".")  # transform(image, return_tensors="pt").pixel_values
# of an odd margin it cuts the smaller half at the left and the top, where torchvision rounds half a pixel to even"""

FORMATS = {
    "torchvision": Format("torchvision", "torchvision", _own_config, _torchvision_snippet),
    "timm": Format("timm", "timm", _timm_files, _timm_snippet, transform=_TIMM_TRANSFORM),
    "huggingface": Format(
        "huggingface", "Transformers", _huggingface_files, _huggingface_snippet, transform=_HUGGINGFACE_TRANSFORM
    ),
    "detectron2": Format("detectron2", "detectron2", _detectron2_files, _detectron2_snippet, weights="model.pth"),
    "full": Format(OWN, "seer_pipe, head included", _own_config, _full_snippet, prefix="trunk."),
}
