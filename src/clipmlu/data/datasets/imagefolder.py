"""A folder with one sub-folder of images per class, as torchvision's ImageFolder reads it."""

from __future__ import annotations

import logging
from pathlib import Path

from PIL import Image

from clipmlu.data.finding import Found, LeftOut, find_images, sub_folders
from clipmlu.data.images import load_image
from clipmlu.errors import InputError
from clipmlu.file_names import name_from_path

_log = logging.getLogger(__name__)


class ImageFolder:
    """Labelled images below ``root``; see ``Dataset``.

    Sub-folders in sorted order are the classes, images below them the items, in the order of torchvision's ImageFolder. When
    ``root`` has a sub-folder named after the split, that is read instead. A folder that cannot be listed and a link that leads
    nowhere are items that cannot be read. What is left out is logged.

    Raises:
        InputError: there is no such folder, or no image in it.
    """

    def __init__(self, root: Path, split: str = "test") -> None:
        self._root = root / split if (root / split).is_dir() else root
        self.name = f"imagefolder:{name_from_path(root)}"
        self.split = split
        if not self._root.is_dir():
            raise InputError(f"Image folder '{root}' does not exist. Expected a folder with one sub-folder per class.")
        left_out = LeftOut()
        folders = [found.source() for found in sub_folders(self._root, left_out)]
        self._items = [
            (found, label) for label, folder in enumerate(folders) for found in _images_below(folder, left_out)
        ]
        _log_left_out(left_out)
        if not self._items:
            raise InputError(
                f"Image folder '{self._root}' has no images in sub-folders. Expected one sub-folder per class."
            )
        self.original_names: tuple[str, ...] = tuple(name_from_path(folder.name) for folder in folders)
        self.class_names = tuple(name.replace("_", " ") for name in self.original_names)

    def __len__(self) -> int:
        return len(self._items)

    def label(self, index: int) -> int:
        """Position of the image's sub-folder in sorted order."""
        return self._items[index][1]

    def image(self, index: int) -> Image.Image:
        """The decoded image."""
        return load_image(self.source(index))

    def source(self, index: int) -> Path:
        """The image's file."""
        return self._items[index][0].source()

    def key(self, index: int) -> str:
        """The image's path relative to the folder."""
        return name_from_path(self._items[index][0].path.relative_to(self._root).as_posix())


class UnlabelledFolder:
    """All images below a folder, without classes: for calibration; see ``Dataset``.

    Raises:
        InputError: there is no such folder, or no image in it.
    """

    original_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()

    def __init__(self, root: Path) -> None:
        self._root = root
        self.name, self.split = f"folder:{name_from_path(root)}", "all"
        if not root.is_dir():
            raise InputError(f"Image folder '{root}' does not exist. Expected a folder of images.")
        left_out = LeftOut()
        self._items = _images_below(root, left_out)
        _log_left_out(left_out)
        if not self._items:
            raise InputError(f"Image folder '{root}' has no images.")

    def __len__(self) -> int:
        return len(self._items)

    def label(self, index: int) -> int:
        """There are no classes: all images count as one."""
        return 0

    def image(self, index: int) -> Image.Image:
        """The decoded image."""
        return load_image(self.source(index))

    def source(self, index: int) -> Path:
        """The image's file."""
        return self._items[index].source()

    def key(self, index: int) -> str:
        """The image's path relative to the folder."""
        return name_from_path(self._items[index].path.relative_to(self._root).as_posix())


def _images_below(folder: Path, left_out: LeftOut) -> list[Found]:
    """In torchvision's order: by the folder's path as text, then by the file's name."""
    return sorted(find_images(folder, left_out), key=lambda found: (str(found.path.parent), found.path.name))


def _log_left_out(left_out: LeftOut) -> None:
    note = left_out.note()
    if note is not None:
        _log.warning("%s", note)
