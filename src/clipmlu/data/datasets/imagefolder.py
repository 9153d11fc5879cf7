"""A folder with one sub-folder of images per class, read like torchvision's ImageFolder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from clipmlu.data.class_names import FolderNames, look_like_ids, name_folders
from clipmlu.data.datasets.elements import DatasetBase
from clipmlu.data.datasets.splits import find_split
from clipmlu.data.finding import Found, SkippedFiles, find_images, sub_folders
from clipmlu.data.images import DEFAULT_MAX_PIXELS, load_image
from clipmlu.errors import InputError
from clipmlu.file_names import name_from_path

_SHOWN = 5
_log = logging.getLogger(__name__)


class _FolderImages(DatasetBase):
    """The listed images below a folder; see ``Dataset``."""

    max_pixels: int
    _root: Path
    _items: list[Found]

    def __len__(self) -> int:
        return len(self._items)

    def image(self, index: int) -> Image.Image:
        """Return the decoded image."""
        return load_image(self.source(index), max_pixels=self.max_pixels)

    def source(self, index: int) -> Path:
        """Return the image's file."""
        return self._items[index].source()

    def key(self, index: int) -> str:
        """Return the image's path relative to the folder."""
        return name_from_path(self._items[index].path.relative_to(self._root).as_posix())


class ImageFolder(_FolderImages):
    """Labelled images below ``root``; see ``Dataset``.

    The sorted sub-folders are the classes and the images below them are the items, in the order of torchvision's
    ImageFolder.
    A folder that cannot be listed and a dangling link are items that cannot be read. Skipped files are logged.

    Args:
        root: a folder of class folders, or of splits.
        split: the sub-folder of ``root`` to read; None for ``default_split`` if it exists, else for ``root`` itself,
            whose
            split is then called ``all``.
        default_split: the split if ``split`` is None.
        class_names: names for the class folders; see ``name_folders``. None uses the folder names, with spaces for
            underscores.
        folder_names: use the folder names even if they look like ids or splits.
        max_pixels: largest width x height of an image; larger images are errors.

    Raises:
        OptionError: there is no such split, or ``root`` has other splits.
        InputError: the folder does not exist, a class folder has no image, or the names are ids or do not fit.
    """

    def __init__(
        self,
        root: Path,
        split: str | None = None,
        *,
        default_split: str = "test",
        class_names: FolderNames | None = None,
        folder_names: bool = False,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> None:
        self.max_pixels = max_pixels
        self._root, self.split = find_split(root, split, default_split, folder_names=folder_names)
        self.name = f"imagefolder:{name_from_path(root)}"
        skipped_files = SkippedFiles()
        folders = [found.source() for found in sub_folders(self._root, skipped_files)]
        images = [_images_below(folder, skipped_files) for folder in folders]
        _log_skipped_files(skipped_files)
        _check_filled(self._root, folders, images)
        self._items = [found for below in images for found in below]
        self._labels = [label for label, below in enumerate(images) for _ in below]
        names = [folder.name for folder in folders]
        self.original_names: tuple[str, ...] = tuple(map(name_from_path, names))
        if class_names is not None:
            self.class_names = name_folders(class_names, names)
        else:
            _check_words(self._root, names, folder_names=folder_names)
            self.class_names = tuple(name.replace("_", " ").strip() for name in self.original_names)

    def label(self, index: int) -> int:
        """Return the position of the image's sub-folder in sorted order."""
        return self._labels[index]


class UnlabelledFolder(_FolderImages):
    """All images below a folder, without classes, for calibration; see ``Dataset``.

    Raises:
        InputError: the folder does not exist or has no images.
    """

    original_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()

    def __init__(self, root: Path, max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
        self.max_pixels = max_pixels
        self._root = root
        self.name, self.split = f"folder:{name_from_path(root)}", "all"
        if not root.is_dir():
            raise InputError(f"Image folder '{root}' does not exist. Expected a folder of images.")
        skipped_files = SkippedFiles()
        self._items = _images_below(root, skipped_files)
        _log_skipped_files(skipped_files)
        if not self._items:
            raise InputError(f"Image folder '{root}' has no images.")

    def label(self, index: int) -> int:
        """Return 0 for every image, since there are no classes."""
        return 0


def _check_filled(root: Path, folders: Sequence[Path], images: Sequence[Sequence[Found]]) -> None:
    """Raise for class folders without images, as torchvision does: their class would be missing from the accuracy."""
    if not any(images):
        raise InputError(
            f"Image folder '{name_from_path(root)}' has no images in sub-folders. Expected one sub-folder per class."
        )
    empty = [f"'{name_from_path(folder.name)}'" for folder, below in zip(folders, images, strict=True) if not below]
    if empty:
        more = f" and {len(empty) - _SHOWN} more" if len(empty) > _SHOWN else ""
        raise InputError(
            f"Image folder '{name_from_path(root)}' has class folders without images: {', '.join(empty[:_SHOWN])}{more}. "
            "Fill them, or remove them."
        )


def _check_words(root: Path, names: Sequence[str], *, folder_names: bool) -> None:
    """Raise if the folder names are ids, which carry no meaning for a text tower, unless they are requested."""
    if look_like_ids(names) and not folder_names:
        raise InputError(
            f"The {len(names)} class folders of '{name_from_path(root)}' are named by ids, such as '{name_from_path(names[0])}', "
            "which have no meaning for a text tower. Give their names: --class-names FILE (--calib-class-names for --calib), with one "
            "name a line in the order of the folders, a map folder -> name, or imagenet_class_index.json. Or take them as they "
            "are: --folder-names."
        )


def _images_below(folder: Path, skipped_files: SkippedFiles) -> list[Found]:
    """Return the images in torchvision's order: by the folder's path as text, then by the file's name."""
    return sorted(find_images(folder, skipped_files), key=lambda found: (str(found.path.parent), found.path.name))


def _log_skipped_files(skipped_files: SkippedFiles) -> None:
    note = skipped_files.note()
    if note is not None:
        _log.warning("%s", note)
