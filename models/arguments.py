"""Check the arguments of `DeepLabV3plusXception65`; raise InputError.

Each function returns the argument in the form that the link keeps.
"""
import math
import numbers

import numpy as np

from .constants import MAX_INPUT_SIDE, MAX_RATE, OUTPUT_STRIDES
from .utils.errors import InputError


def check_class_count(n_class, known):
    """Take n_class, else the known count of the pretrained model."""
    if n_class is None and known is None:
        raise InputError('n_class is needed without a pretrained model')
    if n_class is not None and not _is_count(n_class):
        raise InputError(f'n_class is {n_class}, and must be a positive '
                         'integer')
    if None not in (n_class, known) and n_class != known:
        raise InputError(f'n_class is {n_class}, but the pretrained model has '
                         f'{known} classes: leave n_class out')
    return known if n_class is None else n_class


def check_height_and_width(size):
    sides = tuple(size) if np.ndim(size) else (size, size)
    if len(sides) != 2 or not all(
            _is_count(side) and side <= MAX_INPUT_SIDE for side in sides):
        raise InputError(
            f'min_input_size is {size}, and must be one integer or two, 1 to '
            f'{MAX_INPUT_SIDE} pixels')
    return int(sides[0]), int(sides[1])


def _is_count(value):
    return isinstance(value, numbers.Integral) and value > 0


def check_scales(scales):
    scales = tuple(scales)
    if not scales or not all(0 < scale < math.inf for scale in scales):
        raise InputError(f'scales are {scales}, and must be one or more '
                         'positive numbers')
    return scales


def check_atrous_rates(rates):
    rates = tuple(rates)
    if len(rates) != 3 or not all(
            _is_count(rate) and rate <= MAX_RATE for rate in rates):
        raise InputError(f'atrous_rates are {rates}, and must be three '
                         f'integers, 1 to {MAX_RATE}')
    return rates


def check_output_stride(output_stride):
    if output_stride not in OUTPUT_STRIDES:
        raise InputError(f'output_stride is {output_stride}, and must be '
                         f'{" or ".join(map(str, OUTPUT_STRIDES))}')
    return output_stride
