"""Recipes: the quantisation options of a bundle, stored so that the same bundle can be compiled again."""

from __future__ import annotations

import dataclasses
import os

import msgspec

from clipmlu.arguments import as_path
from clipmlu.bundle.directory import CompiledBundle, open_compiled
from clipmlu.bundle.manifest import MANIFEST_NAME
from clipmlu.compile.plan import CompileOptions
from clipmlu.data.calibration import CalibrationOptions
from clipmlu.data.calibration_set import CalibrationSet
from clipmlu.data.images import DEFAULT_MAX_PIXELS
from clipmlu.errors import InputError, OptionError
from clipmlu.file_names import text_from_name
from clipmlu.files.read import read_json
from clipmlu.specs import CalibrationRecord, NaturalInt, Precision, QuantisationOptions, Spec

RECIPE_NAME = "recipe.json"
SCHEMA_VERSION = 1


class Recipe(Spec, frozen=True, kw_only=True):
    """The quantisation of a bundle.

    Attributes:
        schema_version: version of the layout.
        precision: the mode.
        quantisation: options of the quantisation, or None for a mode without.
        calibration: the calibration data, or None.
    """

    schema_version: NaturalInt = SCHEMA_VERSION
    precision: Precision
    quantisation: QuantisationOptions | None
    calibration: CalibrationRecord | None


def recipe_of(bundle: CompiledBundle) -> Recipe:
    """Return the recipe of a bundle."""
    facts = bundle.compilation
    return Recipe(precision=facts.precision, quantisation=facts.quantisation, calibration=facts.calibration)


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe from its file, or from a compiled bundle.

    Raises:
        InputError: the file is missing or is not a recipe.
        BundleError: the bundle's files differ from its manifest.
    """
    given = as_path(path, "the recipe")
    if (given / MANIFEST_NAME).is_file():
        return recipe_of(open_compiled(given, verify=False))
    try:
        recipe = read_json(given, Recipe)
    except OSError as error:
        raise InputError(
            f"Cannot read the recipe '{path}': {error.strerror}. Expected a {RECIPE_NAME}, or a compiled bundle."
        ) from error
    except msgspec.DecodeError as error:
        raise InputError(f"'{path}' is not a recipe as 'clipmlu compile --max-drop' writes it: {error}.") from error
    if recipe.schema_version > SCHEMA_VERSION:
        raise InputError(
            f"Recipe '{path}' has schema {recipe.schema_version}; this clipmlu reads up to {SCHEMA_VERSION}."
        )
    return recipe


def apply_recipe(recipe: Recipe, options: CompileOptions, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> CompileOptions:
    """Return options that compile with a recipe.

    Args:
        recipe: the recipe.
        options: all other options; the recipe's calibration data are used unless others are given.
        max_pixels: largest width x height of an image of the recipe's calibration data.

    Raises:
        OptionError: the options contradict the recipe.
    """
    if options.quantisation is not None:
        raise OptionError("a recipe sets the quantisation options; leave out those options, or the recipe")
    calibration = options.calibration
    if recipe.calibration is None:
        if calibration is not None:
            raise OptionError(
                f"the recipe's precision {recipe.precision.value} needs no calibration; leave --calib out"
            )
    elif not isinstance(calibration, CalibrationSet):
        recorded = recipe.calibration
        calibration = dataclasses.replace(
            CalibrationOptions(dataset=text_from_name(recorded.dataset), max_pixels=max_pixels)
            if calibration is None
            else calibration,
            samples=recorded.samples,
            seed=recorded.seed,
        )
    return dataclasses.replace(
        options,
        precision=recipe.precision,
        quantisation=recipe.quantisation,
        calibration=calibration,
        calibration_digest=None if recipe.calibration is None else recipe.calibration.digest,
    )
