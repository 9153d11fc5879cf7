"""A folder with one sub-folder of images per class, as torchvision's ImageFolder reads it."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from clipmlu.data.images import IMAGE_SUFFIXES, load_image
from clipmlu.errors import InputError


class ImageFolder:
    """Labelled images below ``root``; see ``Dataset``.

    Sub-folders in sorted order are the classes, images below them in sorted order the items. When ``root`` has a
    sub-folder named after the split, that is read instead.

    Raises:
        InputError: there is no such folder, or no image in it.
    """

    def __init__(self, root: Path, split: str = "test") -> None:
        self._root = root / split if (root / split).is_dir() else root
        self.name = f"imagefolder:{root}"
        self.split = split
        if not self._root.is_dir():
            raise InputError(f"Image folder '{root}' does not exist. Expected a folder with one sub-folder per class.")
        folders = sorted(path for path in self._root.iterdir() if path.is_dir() and not path.name.startswith("."))
        self._items = [(path, label) for label, folder in enumerate(folders) for path in _images_below(folder)]
        if not self._items:
            raise InputError(
                f"Image folder '{self._root}' has no images in sub-folders. Expected one sub-folder per class."
            )
        self.original_names: tuple[str, ...] = tuple(folder.name for folder in folders)
        self.class_names = tuple(name.replace("_", " ") for name in self.original_names)

    def __len__(self) -> int:
        return len(self._items)

    def label(self, index: int) -> int:
        """Position of the image's sub-folder in sorted order."""
        return self._items[index][1]

    def image(self, index: int) -> Image.Image:
        """The decoded image."""
        return load_image(self._items[index][0])

    def source(self, index: int) -> Path:
        """The image's file."""
        return self._items[index][0]

    def key(self, index: int) -> str:
        """The image's path relative to the folder."""
        return self._items[index][0].relative_to(self._root).as_posix()


class UnlabelledFolder:
    """All images below a folder, without classes: for calibration; see ``Dataset``.

    Raises:
        InputError: there is no such folder, or no image in it.
    """

    original_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()

    def __init__(self, root: Path) -> None:
        self._root = root
        self.name, self.split = f"folder:{root}", "all"
        if not root.is_dir():
            raise InputError(f"Image folder '{root}' does not exist. Expected a folder of images.")
        self._items = _images_below(root)
        if not self._items:
            raise InputError(f"Image folder '{root}' has no images.")

    def __len__(self) -> int:
        return len(self._items)

    def label(self, index: int) -> int:
        """There are no classes: all images count as one."""
        return 0

    def image(self, index: int) -> Image.Image:
        """The decoded image."""
        return load_image(self._items[index])

    def source(self, index: int) -> Path:
        """The image's file."""
        return self._items[index]

    def key(self, index: int) -> str:
        """The image's path relative to the folder."""
        return self._items[index].relative_to(self._root).as_posix()


def _images_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
