"""`stint demo`: the whole product on a laptop, with true labels.

Digits become JPEG photographs in Parquet shards, some rows deliberately broken; a small network is trained on the other
half of the digits; then the ordinary job runs on a local Ray: quantize, gate on true labels, score, verify.
"""

from __future__ import annotations

import argparse
import io
import shlex
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from jobs.console import Console
from jobs.errors import SpecError
from jobs.plan.job import Job
from jobs.report.journal import run_ids
from jobs.spec.load import parse_spec

SPEC = Path(__file__).with_suffix(".yaml")
MARKER = ".stint-demo"
FILES = 4
GROUPS_A_FILE = 3
COPIES = 20
"""Every digit is photographed so many times, each time turned, moved and lit a little differently."""
IMAGE_PX = 48
BROKEN_EVERY = 97
TRAINED_COPIES = 4

_Pixels = npt.NDArray[np.uint8]
_Labels = npt.NDArray[np.int64]


def command(arguments: argparse.Namespace, console: Console) -> int:
    """`stint demo`: make data and weights, run the job there and say what came out."""
    folder = Path(arguments.folder)
    file = str(folder / "job.yaml")
    raw = yaml.safe_load(SPEC.read_text())
    raw["input"]["uri"], raw["output"]["uri"] = str(folder / "images"), str(folder / "predictions")
    raw["model"]["weights"] = str(folder / "digits.safetensors")
    spec = parse_spec(raw, file)
    digits, labels = load_digits()
    _make_folder(folder)
    Path(file).write_text(yaml.safe_dump(raw, sort_keys=False, default_flow_style=None))
    half = len(digits) // 2
    console.say(f"making {(len(digits) - half) * COPIES:,} JPEG rows in {folder / 'images'}, some of them broken")
    write_images(folder / "images", digits[half:], labels[half:], seed=1)
    console.say(f"training a small network on the other {half} digits")
    train_weights(folder / "digits.safetensors", digits[:half], labels[:half])
    for name in ("run", "verify"):
        console.say(f"\n$ stint {name} {shlex.quote(file)}")
        code = console.run([name, file])
        if code and name == "run":
            return code
    job = Job.open(spec, writing=False)
    url = job.store.url
    console.show(
        f"\nlook at:  {url}/_stint/runs/{run_ids(job.store)[-1]}/report.html  the page of the run\n"
        f"          {url}/{job.ledger.root}/  predictions, Parquet\n"
        f"          {url}/_stint/bundles/{job.fingerprints.bundle}/manifest.json  model and accuracy report"
    )
    return code


def _make_folder(folder: Path) -> None:
    """Empty, and marked as ours. Raises SpecError for one that is somebody else's, or that cannot be written."""
    try:
        if folder.exists() and not (folder / MARKER).is_file():
            raise SpecError(f"{folder} exists and is not an earlier demo", "choose another folder with --folder")
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        (folder / MARKER).write_text("Made by `stint demo`, which replaces this folder when it runs again.\n")
    except OSError as error:
        reason = error.strerror or str(error)
        raise SpecError(f"cannot write {folder}: {reason}", "choose a folder of yours with --folder") from error


def load_digits() -> tuple[_Pixels, _Labels]:
    """scikit-learn's 1,797 handwritten digits as N × 8 × 8 uint8, shuffled, and their labels."""
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise SpecError("the demo's data come with scikit-learn", "pip install scikit-learn") from error
    data = load()
    order = np.random.default_rng(0).permutation(len(data.target))
    return (data.images[order] * 255 / 16).astype(np.uint8), data.target[order].astype(np.int64)


def photograph(digit: _Pixels, rng: np.random.Generator) -> _Pixels:
    """One digit of 8 × 8 as an IMAGE_PX square RGB picture: enlarged, turned, moved, lit unevenly, a little noisy."""
    image = Image.fromarray(digit).resize((IMAGE_PX - 8, IMAGE_PX - 8), Image.Resampling.BICUBIC)
    canvas = Image.new("L", (IMAGE_PX, IMAGE_PX))
    left, top = rng.integers(1, 8, 2)
    canvas.paste(image, (int(left), int(top)))
    turned = canvas.rotate(float(rng.uniform(-12, 12)), Image.Resampling.BILINEAR)
    light = np.linspace(rng.uniform(0.7, 1), rng.uniform(0.7, 1), IMAGE_PX)
    picture = np.asarray(turned)[:, :, None] * light[None, :, None] + rng.normal(12, 6, (IMAGE_PX, IMAGE_PX, 3))
    return picture.clip(0, 255).astype(np.uint8)


def jpeg(pixels_HWC: _Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels_HWC).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_images(folder: Path, digits: _Pixels, labels: _Labels, *, seed: int, copies: int = COPIES) -> int:
    """Parquet files of id, digit, image; every BROKEN_EVERY-th image is broken, in four ways. Returns the rows."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    which = rng.permutation(np.repeat(np.arange(len(digits)), copies))
    whole = [jpeg(photograph(digits[i], rng)) for i in which]
    images: list[bytes | None] = [*whole]
    for number, row in enumerate(range(BROKEN_EVERY // 2, len(images), BROKEN_EVERY)):
        images[row] = (whole[row][: len(whole[row]) // 2], b"", None, b"this is not an image")[number % 4]
    ids, digits_of = pa.array(range(len(which)), pa.int64()), pa.array(labels[which], pa.int64())
    table = pa.table({"id": ids, "digit": digits_of, "image": pa.array(images, pa.binary())})
    rows_a_file = -(-len(which) // FILES)
    options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    for number in range(FILES):
        part = table.slice(number * rows_a_file, rows_a_file)
        rows_a_group = -(-part.num_rows // GROUPS_A_FILE)
        pq.write_table(part, folder / f"digits-{number}.parquet", row_group_size=rows_a_group, **options)
    return len(which)


def train_weights(file: Path, digits: _Pixels, labels: _Labels, *, seed: int = 0, copies: int = TRAINED_COPIES) -> None:
    """Train the demo's network on photographs of the given digits and save its state dict."""
    import torch
    from safetensors.torch import save_file

    from workers import digits as network
    from workers.image.resize import decode_into

    # The network is too small to share out, and OpenMP threads that wait for a busy machine's cores wait for ever.
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    which = np.repeat(np.arange(len(digits)), copies)
    how = network.DIGITS
    crops_NHWC = np.empty((len(which), how.crop_px, how.crop_px, 3), np.uint8)
    for row, i in enumerate(which):
        decode_into(jpeg(photograph(digits[i], rng)), how, crops_NHWC[row])
    torch.manual_seed(seed)
    module = network.train(network.digits_cnn(), crops_NHWC, labels[which], how, seed=seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, file)
