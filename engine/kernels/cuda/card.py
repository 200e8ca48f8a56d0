"""Is there a card, and a way to use it? If not, which of the things that it takes is missing."""

from __future__ import annotations

from importlib.util import find_spec

from ....quant.errors import BadInput

INSTALL = "install it with `pip install 'qwenref[cuda]'`, or take --backend cpu"


def require_package() -> None:
    """Raises BadInput unless numba-cuda is installed. (Numba has a numba.cuda of its own, which nobody maintains.)"""
    if find_spec("numba_cuda") is None:
        raise BadInput(f"backend cuda needs the package numba-cuda; {INSTALL}")


def require_card() -> None:
    """Raises BadInput unless a card answers and kernels can be compiled for it."""
    from numba import config, cuda

    if config.ENABLE_CUDASIM:  # type: ignore[attr-defined]
        return
    from numba.cuda.cudadrv import nvvm
    from numba.cuda.cudadrv.driver import driver
    from numba.cuda.cudadrv.error import CudaSupportError

    if find_spec("cuda.bindings") is None or find_spec("cuda.core") is None:
        raise BadInput(f"backend cuda needs the packages cuda-bindings and cuda-core; {INSTALL}")
    try:
        driver.ensure_initialized()
        count = len(cuda.gpus)
    except CudaSupportError as error:
        reason = " ".join(str(error).split())
        raise BadInput(f"no NVIDIA card or no driver that answers ({reason}); take --backend cpu") from None
    if not count:
        raise BadInput("the NVIDIA driver names no card; take --backend cpu")
    if not nvvm.is_available():
        raise BadInput(f"backend cuda needs NVIDIA's compiler library (nvvm); {INSTALL}")
    major, minor = cuda.get_current_device().compute_capability
    if (major, minor) < (7, 5):
        raise BadInput(f"the card's compute capability is {major}.{minor}; 7.5 or more is needed; take --backend cpu")
