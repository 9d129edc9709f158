"""Exporting a trunk to a folder that another library loads, and loading such a folder again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

import seer_pipe
from seer_pipe.errors import UserError
from seer_pipe.export.formats import FORMATS, Format
from seer_pipe.export.match import load_weights
from seer_pipe.export.onnx import ONNX_CODE, require_onnx, run_onnx, write_onnx
from seer_pipe.export.preprocess import Preprocessing
from seer_pipe.export.weights import read_weights, write_weights
from seer_pipe.models import Trunk, build_trunk, multiply_adds
from seer_pipe.models.trunk import OWN

TOLERANCE = 1e-5  # of features loaded back, relative to the largest
ONNX_TOLERANCE = 1e-4  # the runtime's kernels add in another order, which narrow BatchNorm statistics make more of


def export_backbone(
    trunk: Trunk,
    out: Path,
    *,
    format: str = "torchvision",
    images: Tensor,
    metadata: Mapping[str, str],
    preprocessing: Preprocessing = Preprocessing(),
    sections: Mapping[str, str] | None = None,
    head: nn.Module | None = None,
    onnx: bool = False,
    origin: str = "trained by seer_pipe on images without labels",
    self_supervised: bool = True,
    licence: str | None = None,
) -> None:
    """Write ``trunk`` to the new folder ``out``: weights, the library's files, and a model card, README.md.

    format         torchvision, timm, huggingface, detectron2, or full, which keeps the ``head`` too
    images         [n, 3, H, W], or clips [n, 3, T, H, W], normalised: the folder's features of these must be the
                   trunk's, or nothing is written
    metadata       facts of the run (images_seen, step, method, data, ...), kept in the weight file and the card
    sections       more of the card: {title: Markdown}, such as the data, the recipe, evaluation results
    onnx           add model.onnx, compared in the same way
    origin         where the weights are from, for the card; ``licence``: that of theirs, where it is known
    self_supervised   whether they are known to come of training without labels alone, for the card's tags

    A format unknown, or unable to hold this trunk, and a folder that is already there are a `UserError`.
    The trunk is left in the mode, training or not, that it was found in.
    """
    if format not in FORMATS:
        raise UserError(f"no export format {format!r}: choose {', '.join(FORMATS)}")
    if (head is not None) != (format == "full"):
        raise ValueError("the full format, and no other, takes a head")
    if trunk.takes_clips != (preprocessing.frames is not None):
        raise ValueError("a trunk of clips, and no other, is shown frames")
    if out.exists():
        raise UserError(f"{out}: already there; choose another folder, or remove it")
    if onnx:
        require_onnx()
    layout = FORMATS[format]
    if layout.library not in (OWN, *trunk.namings):
        instead = "torchvision" if "torchvision" in trunk.namings else "full"
        raise UserError(f"{format}: that library has no {trunk.name}: export it as {instead}")
    files = layout.files(trunk, preprocessing)
    identity = {"trunk": trunk.name, "stem": trunk.stem_kind, "norm": trunk.norm_kind, "layout": format,
                "seer_pipe": seer_pipe.__version__}  # fmt: skip
    names = ("size", "mean", "std", *(["frames"] if trunk.takes_clips else []))
    shown = {name: json.dumps(getattr(preprocessing, name)) for name in names}
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        folder = Path(scratch, "export")  # the scratch folder itself is closed to others
        folder.mkdir()
        write_weights(folder / layout.weights, _tensors(trunk, head, layout), {**metadata, **shown, **identity})
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content, indent=2) + "\n")
        more = {"ONNX": f"```python\n{ONNX_CODE}\n```"} if onnx else {}
        card = _model_card(trunk, layout, preprocessing, metadata, {**more, **(sections or {})}, origin)
        card = _front_matter(self_supervised, licence) + card
        (folder / "README.md").write_text(card)
        back = load_backbone(folder).to(next(trunk.parameters()).device)
        _compare(_features(back, images), _features(trunk, images))
        if onnx:
            write_onnx(back.cpu(), folder / "model.onnx", preprocessing.shape)
            _compare(run_onnx(folder / "model.onnx", images), _features(back, images), ONNX_TOLERANCE)
        folder.rename(out)


def load_backbone(folder: str | Path) -> Trunk:
    """The trunk of an exported folder, whatever its format, on the CPU, in evaluation mode.

    A folder that is missing, that `export_backbone` did not write, or whose tensors are not exactly those of the
    trunk it names, is a `UserError`.
    """
    folder = Path(folder)
    _, metadata = read_weights(folder)
    if not {"trunk", "stem"} <= metadata.keys():
        raise UserError(f"{folder}: its weights name no trunk; was it exported by seer-pipe?")
    with torch.device("meta"):
        norm = metadata.get("norm", "batch")
        trunk = build_trunk(metadata["trunk"], stem=metadata["stem"], norm=norm)  # type: ignore[arg-type]  # checked there
    trunk.to_empty(device="cpu")
    loaded = load_weights(trunk, folder)
    over = [name for name in loaded.left_out if metadata.get("layout") != "full" or not name.startswith("head.")]
    if over:
        raise UserError(
            f"{folder}: holds a head too ({', '.join(over[:4])}), so it is no backbone as it was exported; "
            "export it again, or load it with the library that wrote the head"
        )
    return trunk.eval()


def _tensors(trunk: Trunk, head: nn.Module | None, layout: Format) -> dict[str, Tensor]:
    names = trunk.names_in(layout.library)
    tensors = {layout.prefix + names[key]: tensor for key, tensor in trunk.state_dict().items()}
    if head is not None:
        tensors |= {f"head.{key}": tensor for key, tensor in head.state_dict().items()}
    return tensors


@torch.no_grad()
def _features(trunk: Trunk, images: Tensor) -> Tensor:
    """In evaluation mode and whole fp32, brought to the CPU; the trunk's mode is put back."""
    was_training = trunk.training
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        features = trunk.eval()(images.to(next(trunk.parameters()).device))
    trunk.train(was_training)
    return features.cpu()


def _compare(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    """Another result than the trunk's is a defect of the export, not of what it was given."""
    difference = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-12)
    if not difference <= tolerance:  # so that NaN fails
        raise RuntimeError(f"the exported features differ from the trunk's by {difference:.1e} of the largest")


def _front_matter(self_supervised: bool, licence: str | None) -> str:
    """What the Hugging Face Hub reads of a model card."""
    tags = "image-feature-extraction" + (", self-supervised" if self_supervised else "")
    about = f"tags: [{tags}]\npipeline_tag: image-feature-extraction\n" + (f"license: {licence}\n" if licence else "")
    return f"---\n{about}---\n\n"


def _model_card(
    trunk: Trunk, layout: Format, pre: Preprocessing, metadata: Mapping[str, str], sections: Mapping[str, str],
    origin: str,
) -> str:  # fmt: skip
    parameters = sum(p.numel() for p in trunk.parameters())
    cost = multiply_adds(trunk.name, pre.shape, stem="small" if trunk.stem_kind == "small" else "imagenet")
    pixels, of, shown = f"{pre.size} x {pre.size}", "image", ""
    if pre.frames is not None:
        of, shown = "clip", f"{pre.frames[0]} frames at {pre.frames[1]:g} a second, from the middle of a clip, "
    facts = {
        "Architecture": trunk.name
        + (" with the small stem" if trunk.stem_kind == "small" else "")
        + (" with LayerNorm for BatchNorm" if trunk.norm_kind == "layer" else ""),
        "Parameters": f"{parameters / 1e6:.2f} M",
        "Multiply-adds": f"{cost / 1e9:.3g} G per {of} of {pixels}",
        "Features": f"{trunk.width}, averaged over the last feature map",
        "Input": f"{shown}RGB in [0, 1], {pixels} pixels",
        "Resize": f"shorter side to {pre.resize}, bilinear with antialiasing, then the central {pixels}",
        "Mean": ", ".join(map(str, pre.mean)),
        "Standard deviation": ", ".join(map(str, pre.std)),
        **metadata,
    }
    own = f"\n{layout.title} does the same:\n\n```python\n{layout.transform}\n```\n" if layout.transform else ""
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    extra = "".join(f"\n## {title}\n\n{text.strip()}\n" for title, text in sections.items())
    return f"""# {trunk.name}

A vision backbone, {origin}, in the layout of {layout.title}.

| | |
|---|---|
{rows}

## Loading

```python
{layout.snippet(trunk, pre)}
```

## Preprocessing

```python
{pre.code()}
```
{own}{extra}
## Limits

It gives features, not classes: put a classifier on them, or fine-tune it. It has the habits and biases of the
images it learnt from, which nobody here chose; test it on the people, places and things it will meet.
"""
