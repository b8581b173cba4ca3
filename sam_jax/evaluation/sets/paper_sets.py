"""The 23 sets of the SAM paper (table 7): the source, the split, and the layout of images and labels.

Users bring the data. `mask_type`, `split`, `images` and `masks` are the paper's own words and counts. Of sets with more
than 15,000 masks the paper drew images at random until it had about 10,000 (`EvaluationOptions.max_masks`); which ones
is not published. `layout` says what `find` expects below the root. `certain` is False if the layout is neither stated
by the authors nor read by their own code; `notes` says why. For all sets, labels can also be converted to images/ +
labels/ and read with `open_image_set`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from etils import epath

from sam_jax.data.records import DataError
from sam_jax.data.segmentations import to_rles
from sam_jax.evaluation.sets import layouts
from sam_jax.evaluation.sets.image_sets import FileImages, read_objects
from sam_jax.evaluation.sets.label_maps import paired_files
from sam_jax.evaluation.sets.layouts import Finder, MasksOf


@dataclass(frozen=True)
class PaperSet:
    """One row of the paper's table 7, and how to read it.

    Attributes:
      source: the publication and where to get the data.
      mask_type, split: in the paper's words.
      images, masks: how many the paper sampled.
      layout: files below the root, for messages.
      find: root -> images with labels.
      read_masks: labels, size -> masks.
      certain: whether the layout and meaning of the labels are known from the authors' own description or code.
      notes: what is unknown, or was decided here.
    """

    source: str
    mask_type: str
    split: str
    images: int
    masks: int
    layout: str
    find: Finder
    read_masks: MasksOf
    certain: bool = True
    notes: str = ""


PAPER_SETS: dict[str, PaperSet] = {
    "ADE20K": PaperSet(
        "Zhou et al. 2019, IJCV; groups.csail.mit.edu/vision/datasets/ADE20K",
        *("Instance", "Validation", 302, 10128),
        "images/ADE/validation/**/ADE_val_*.jpg with _seg.png and _parts_N.png beside (images/validation in 2016)",
        layouts.pairs_in(
            *("images/ADE/validation/**/*.jpg", "images/validation/**/*.jpg"), swap=[(".jpg", "_seg.png")]
        ),
        layouts.ade20k_objects,
        notes="Objects and parts, as in the paper; every colour of the label images is a mask. Amodal masks unused.",
    ),
    "BBBC038v1": PaperSet(
        "Caicedo et al. 2019, Nature Methods; bbbc.broadinstitute.org/BBBC038",
        *("Instance", "Train", 227, 10506),
        "stage1_train/ID/images/ID.png and stage1_train/ID/masks/*.png",
        layouts.pairs_in("stage1_train/*/images/*.png", "*/images/*.png", swap=[("/images/", "/masks/")]),
        layouts.mask_files,
    ),
    "Cityscapes": PaperSet(
        "Cordts et al. 2016, CVPR; cityscapes-dataset.com",
        *("Panoptic", "Validation", 293, 9973),
        "leftImg8bit/val/CITY/*_leftImg8bit.png and gtFine/val/CITY/*_gtFine_instanceIds.png",
        layouts.pairs_in(
            "leftImg8bit/val/*/*_leftImg8bit.png",
            swap=[("leftImg8bit/", "gtFine/"), ("_leftImg8bit", "_gtFine_instanceIds")],
        ),
        layouts.cityscapes_segments,
        notes="Stuff and things of the evaluated classes; the paper does not list which segments it took.",
    ),
    "DOORS": PaperSet(
        "Pugliatti and Topputo 2022, arXiv 2210.16253; doi.org/10.5281/zenodo.7107409",
        *("Instance", "DS1", 10000, 10000),
        "Regression/Te*/img/*.png and Regression/Te*/Rock_all/*.png of the same names",
        layouts.pairs_in("Regression/Te*/img/*.png", "Te*/img/*.png", swap=[("/img/", "/Rock_all/")]),
        layouts.nonzero,
        certain=False,
        notes="Folder names are known from other people's code; that Te1 and Te2, 5,000 each, are the paper's DS1 is a "
        "guess from the count. All nonzero pixels are assumed to be the one boulder.",
    ),
    "DRAM": PaperSet(
        "Cohen et al. 2022, Computer Graphics Forum; faculty.runi.ac.il/arik/site/artseg/Dram-Dataset.html",
        *("Semantic", "Test", 718, 1179),
        "test/**/*.jpg and labels/**/*.png of the same names",
        layouts.pairs_in("test/**/*.jpg", swap=[("test/", "labels/"), (".jpg", ".png")], skip=True),
        layouts.classes,
        certain=False,
        notes="Paths are known from other people's code. One mask per class; 0 is assumed to be background, 255 void.",
    ),
    "EgoHOS": PaperSet(
        "Zhang et al. 2022, ECCV; github.com/owenzlz/EgoHOS",
        *("Instance", "Train (including only Ego4D and THU-READ)", 2940, 9961),
        "train/image/*.jpg and train/label/*.png",
        layouts.pairs_in(
            *("train/image/*.jpg", "train/image/*.png"),
            swap=[("/image/", "/label/"), (".jpg", ".png")],
            only=("ego4d", "thu"),
        ),
        read_objects,
        certain=False,
        notes="Folders and label numbers are the authors'. How file names distinguish Ego4D and THU-READ from the "
        "other sources is not documented: names that start with ego4d or thu are used, ignoring case.",
    ),
    "GTEA": PaperSet(
        "Fathi et al. 2011, CVPR; Li et al. 2015, CVPR; cbs.ic.gatech.edu/fpv",
        *("Instance", "Train (segmenting hands task)", 652, 1208),
        "Images/*.jpg and Masks/*.png of the same names",
        layouts.pairs_in("Images/*.jpg", "*/Images/*.jpg", swap=[("Images/", "Masks/"), (".jpg", ".png")]),
        read_objects,
        certain=False,
        notes="Folder names are known from other people's code for GTEA Gaze+. Each value of a mask image is an "
        "object; how the paper got 1.85 hands per image, and which images are its train split, is not published.",
    ),
    "Hypersim": PaperSet(
        "Roberts et al. 2021, ICCV; github.com/apple/ml-hypersim",
        *("Instance", "Evermotion archinteriors volumes 1-55 excluding 20,25,40,49", 338, 9445),
        "ai_*/images/scene_cam_*_final_preview/frame.*.tonemap.jpg and "
        "ai_*/images/scene_cam_*_geometry_hdf5/frame.*.semantic_instance.hdf5",
        layouts.pairs_in(
            "ai_*/images/scene_cam_*_final_preview/frame.*.tonemap.jpg",
            swap=[("_final_preview/", "_geometry_hdf5/"), (".tonemap.jpg", ".semantic_instance.hdf5")],
        ),
        layouts.hypersim_instances,
        notes="Needs h5py. The volumes in the paper are those of the whole published set.",
    ),
    "IBD": PaperSet(
        "Chen et al. 2022, 3D instance segmentation of MVS buildings, IEEE TGRS",
        *("Instance", "Train (2D annotations)", 467, 11953),
        "images/NAME.jpg (or another format) and labels/NAME.png",
        paired_files,
        read_objects,
        certain=False,
        notes="The release's own layout is not known here: convert its 2D train annotations to images of object "
        "numbers, or to a COCO file given directly as DATA.",
    ),
    "iShape": PaperSet(
        "Yang et al. 2021, arXiv 2109.15068; ishape.github.io",
        *("Instance", "Validation", 754, 9742),
        "NAME/val/coco_format-mask_encoding=rle-instances_2017.json and NAME/val/image/ for antenna, branch, ...",
        layouts.coco_in("*/val/coco_format-mask_encoding=rle-instances_2017.json", images="image"),
        to_rles,
    ),
    "LVIS": PaperSet(
        "Gupta et al. 2019, CVPR; lvisdataset.org",
        *("Instance", "Validation (v0.5)", 945, 9642),
        "lvis_v0.5_val.json (else lvis_v1_val.json) at the root or in annotations/; COCO's val2017/ (and train2017/)",
        layouts.lvis_in(
            *("lvis_v0.5_val.json", "annotations/lvis_v0.5_val.json"),
            *("lvis_v1_val.json", "annotations/lvis_v1_val.json"),
        ),
        to_rles,
        notes="The paper used version 0.5; version 1 is read if that is missing.",
    ),
    "NDD20": PaperSet(
        "Trotter et al. 2020, arXiv 2005.13359; data.ncl.ac.uk",
        *("Instance", "N/A", 4402, 6100),
        "ABOVE/*.jpg with ABOVE_LABELS.json and BELOW/*.jpg with BELOW_LABELS.json",
        layouts.via_in(("ABOVE_LABELS.json", "ABOVE"), ("BELOW_LABELS.json", "BELOW")),
        to_rles,
    ),
    "NDISPark": PaperSet(
        "Ciampi et al. 2021, VISAPP; zenodo.org/record/6560823",
        *("Instance", "Train", 111, 2577),
        "train/train_coco_annotations.json and train/imgs/",
        layouts.coco_in("train/train_coco_annotations.json", images="imgs"),
        to_rles,
    ),
    "OVIS": PaperSet(
        "Qi et al. 2022, IJCV; songbai.site/ovis",
        *("Instance", "Train", 2044, 10011),
        "annotations_train.json and train/VIDEO/img_*.jpg",
        layouts.youtube_vis_in("annotations_train.json", "train"),
        to_rles,
    ),
    "PIDRay": PaperSet(
        "Wang et al. 2021, ICCV; github.com/bywang2018/security-dataset",
        *("Instance", "Test (hard)", 3733, 8892),
        "annotations/xray_test_hard.json and hard/",
        layouts.coco_in("annotations/xray_test_hard.json", images="../hard"),
        to_rles,
    ),
    "Plittersdorf": PaperSet(
        "Haucke et al. 2022 (SOCRATES); timm.haucke.xyz/datasets/plittersdorf",
        *("Instance", "Train, validation, test", 187, 546),
        "train.json, val.json, test.json and images/",
        layouts.coco_in("*.json", "plittersdorf_instance_segmentation_coco/*.json", images="images"),
        to_rles,
        certain=False,
        notes="Known from other people's code for the COCO release. All .json files beside images/ are read.",
    ),
    "PPDLS": PaperSet(
        "Minervini et al. 2016, Pattern Recognition Letters; plant-phenotyping.org/datasets",
        *("Instance", "N/A", 182, 2347),
        "**/*_rgb.png with *_label.png beside",
        layouts.pairs_in("**/*_rgb.png", swap=[("_rgb.png", "_label.png")], skip=True),
        read_objects,
        notes="Which parts of the collection are the paper's 182 images is not published; all below the root are used.",
    ),
    "STREETS": PaperSet(
        "Snyder and Do 2019, NeurIPS; doi.org/10.13012/B2IDB-3671567_V1",
        *("Instance", "N/A", 819, 9854),
        "annotations/vehicle-annotations.json and images/, the contents of vehicleannotations",
        layouts.via_in(("annotations/vehicle-annotations.json", "images")),
        to_rles,
        certain=False,
        notes="File names and the VIA form are known from other people's code. Regions of all vehicle types are used.",
    ),
    "TimberSeg": PaperSet(
        "Fortin et al. 2022, IROS; data.mendeley.com/datasets/y5npsm3gkj",
        *("Instance", "N/A", 220, 2487),
        "prescaled/coco_annotation.json and images beside it",
        layouts.coco_in("prescaled/coco_annotation.json", "coco_annotation.json", images="."),
        to_rles,
        notes="The smaller images, which its authors recommend; the paper does not say which it used.",
    ),
    "TrashCan": PaperSet(
        "Hong et al. 2020, arXiv 2007.08097; doi.org/10.13020/g1gx-y834",
        *("Instance", "Train (instance task)", 5936, 9540),
        "instance_version/instances_train_trashcan.json and instance_version/train/",
        layouts.coco_in(
            *(
                "instance_version/instances_train_trashcan.json",
                "*/instance_version/instances_train_trashcan.json",
            ),
            "instances_train_trashcan.json",
            images="train",
        ),
        to_rles,
    ),
    "VISOR": PaperSet(
        "Darkhalil et al. 2022, NeurIPS; epic-kitchens.github.io/VISOR",
        *("Instance", "Validation", 1864, 10141),
        "GroundTruth-SparseAnnotations/annotations/val/VIDEO.json and rgb_frames/val/PARTICIPANT/VIDEO.zip",
        layouts.visor_in("val"),
        to_rles,
    ),
    "WoodScape": PaperSet(
        "Yogamani et al. 2019, ICCV; github.com/valeoai/WoodScape",
        *("Instance", "Set 1", 107, 10266),
        "rgb_images/*.png and instance_annotations/*.json",
        layouts.pairs_in(
            "rgb_images/*.png", swap=[("rgb_images/", "instance_annotations/"), (".png", ".json")], skip=True
        ),
        layouts.woodscape_objects,
        notes="All polygons with one tag, including road and lanes. The paper does not define its set 1.",
    ),
    "ZeroWaste-f": PaperSet(
        "Bashkirova et al. 2022, CVPR; ai.bu.edu/zerowaste",
        *("Instance", "Train", 2947, 6155),
        "train/labels.json and train/data/",
        layouts.coco_in("train/labels.json", "splits_final_deblurred/train/labels.json", images="data"),
        to_rles,
    ),
}


def open_paper_set(name: str, root: epath.PathLike) -> FileImages:
    """Opens one of the paper's sets.

    Args:
      name: as in the paper, ignoring case.
      root: the directory that the set was unpacked into, local or gs://.

    Raises:
      DataError: there is no such set, or it is not below the root; the message says what is expected.
    """
    known = {key.lower(): key for key in PAPER_SETS}
    key = known.get(name.lower())
    if key is None:
        close = difflib.get_close_matches(name.lower(), known, 1)
        hint = f"; did you mean {known[close[0]]}?" if close else ""
        raise DataError(f"{name!r} is not one of the paper's sets{hint}; known: {', '.join(PAPER_SETS)}")
    row, place = PAPER_SETS[key], epath.Path(root)
    if not place.is_dir():
        raise DataError(f"{root} is not a directory; {key} is expected as {row.layout}")
    try:
        files = row.find(place)
    except (DataError, OSError) as error:
        raise DataError(f"{key}: {error}; expected below {root}: {row.layout}") from None
    if not files:
        raise DataError(f"{key}: nothing with labels below {root}; expected {row.layout}")
    return FileImages(key, files, row.read_masks)
