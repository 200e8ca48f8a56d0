"""Is there a card, and a way to use it? If not, which of the things that it takes is missing."""

from __future__ import annotations

from importlib.util import find_spec

from .....errors import BadInput

INSTALL = "install it with `pip install 'qwenref[cuda]'`, or take --backend cpu"


def require_package() -> None:
    """Raises BadInput unless numba.cuda is numba-cuda's. (Numba has one of its own, which nobody maintains.)"""
    from numba import cuda

    if find_spec("numba_cuda") is None or "numba_cuda" not in (cuda.__file__ or ""):
        raise BadInput(f"backend cuda needs the package numba-cuda; {INSTALL}")


def describe() -> str:
    """The card that answers, in words. Raises BadInput as the two others do."""
    require_package()
    require_card()
    from numba import config, cuda

    if config.ENABLE_CUDASIM:  # type: ignore[attr-defined]
        return "Numba's simulator"
    from numba.cuda.cudadrv.driver import driver

    device = cuda.get_current_device()
    name = device.name.decode() if isinstance(device.name, bytes) else device.name
    free, whole = cuda.current_context().get_memory_info()
    version = ".".join(map(str, driver.get_version()))
    sm = "".join(map(str, device.compute_capability))
    return f"{name}, sm_{sm}, {free / 1e9:.1f} GB free of {whole / 1e9:.1f} GB, driver for CUDA {version}"


def require_card() -> None:
    """Raises BadInput unless a card answers and kernels can be compiled for it."""
    from numba import config, cuda

    if config.ENABLE_CUDASIM:  # type: ignore[attr-defined]
        return
    from cuda.bindings import __version__ as packages
    from numba.cuda.cudadrv import nvvm
    from numba.cuda.cudadrv.driver import driver

    try:
        driver.ensure_initialized()
        major, minor = driver.get_version()
        if major < int(packages.split(".")[0]):
            raise BadInput(
                f"the NVIDIA driver is for CUDA {major}.{minor}, the installed packages are for {packages}; take a "
                "newer driver, or --backend cpu"
            )
        if not len(cuda.gpus):
            raise BadInput("the NVIDIA driver names no card; take --backend cpu")
        capability = tuple(cuda.get_current_device().compute_capability)
    except BadInput:
        raise
    except Exception as error:  # numba-cuda's, cuda.core's or the bindings' own
        reason = " ".join(str(error).split())
        raise BadInput(f"no NVIDIA card or no driver that answers ({reason}); take --backend cpu") from None
    if not nvvm.is_available():
        raise BadInput(f"backend cuda needs NVIDIA's compiler library (nvvm); {INSTALL}")
    if capability < (7, 5):
        raise BadInput(
            f"the card's compute capability is {capability[0]}.{capability[1]}; 7.5 or more is needed; "
            "take --backend cpu"
        )
