"""What every test shares: how much hypothesis draws, the devices, and a clean state before each test."""

import os

import pytest
from hypothesis import HealthCheck, settings

import minigrad
from minigrad.backend import cuda_is_available

# HYPOTHESIS_PROFILE=ci|deep draws more. A slow or shared machine is no defect: no deadline, no health check on speed.
settings.register_profile("quick", max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("quick"), max_examples=40, derandomize=True)
settings.register_profile("deep", settings.get_profile("quick"), max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

NO_CUDA = pytest.mark.skipif(not cuda_is_available(), reason="needs CuPy and a CUDA GPU")


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=NO_CUDA)])
def device(request):
    """Each test that asks for it runs on the CPU and, where there is one, on the GPU."""
    return request.param


@pytest.fixture(autouse=True)
def clean_state():
    """Recording on, seed 0, and no test leaves it otherwise."""
    minigrad.manual_seed(0)
    with minigrad.enable_grad():
        yield
