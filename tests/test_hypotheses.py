"""Every hypothesis, planted: the mistake is made inside a foreign engine, which goes on with it; the judge must find the stage
and the layer, and only those, and name the mistake."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import erf

import numpy as np
import pytest

from qwenref.engine.weights import Weights
from qwenref.quant.tensor import QTensor
from qwenref.trace.hypotheses import TABLE
from qwenref.trace.verify import UNEXPLAINED, Verification, verify
from tests_foreign import Run, dump_of
