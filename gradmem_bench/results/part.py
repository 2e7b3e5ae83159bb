"""What every part of a record is."""

from pydantic import ConfigDict

from gradmem_bench.config import StrictModel


class Part(StrictModel):
    """A part of a record; NaN and infinity are refused, since JSON has neither."""

    model_config = ConfigDict(allow_inf_nan=False)
