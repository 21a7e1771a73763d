"""Imported by Python itself before anything else, where `mutation.environment` put this folder on the path."""

import os

from tests.sim.mutants import by_name
from tests.sim.mutation import VARIABLE, install

if os.environ.get(VARIABLE):
    install(by_name(os.environ[VARIABLE]))
